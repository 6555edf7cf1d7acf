package apidocs

import (
	"fmt"
	"strconv"
)

// page is what the pages depend on besides the document.
type page struct {
	// root is where the routes begin, relative to the page.
	root string
	// prefix is the same as an absolute path: empty, or Config.RootPath.
	prefix string
	// here marks the page in the bar: "openapi" or "asyncapi".
	here    string
	demo    bool // as in Config
	metrics bool // as in Config
}

// layouts are the parts of the pages that are files.
type layouts struct{ head, bar, swagger, async, quickStart markup }

// readLayouts reads the embedded layouts, which are trusted as the constants are.
func readLayouts() (layouts, error) {
	var l layouts
	for name, layout := range map[string]*markup{
		"head": &l.head, "bar": &l.bar, "swagger": &l.swagger, "asyncapi": &l.async, "quickstart": &l.quickStart,
	} {
		content, err := pageFiles.ReadFile("page/" + name + ".html")
		if err != nil {
			return layouts{}, fmt.Errorf("read the layout of a document page: %w", err)
		}
		*layout = markup(content)
	}
	return l, nil
}

// swaggerPage returns the page of Swagger UI.
func (l layouts) swaggerPage(p page) markup {
	return fill(l.swagger, values{"head": l.head, "bar": l.barOf(p), "root": escape(p.root)})
}

// asyncPage returns the page of the AsyncAPI document.
func (l layouts) asyncPage(p page, document asyncDocument) markup {
	return fill(l.async, values{
		"head":        l.head,
		"bar":         l.barOf(p),
		"root":        escape(p.root),
		"contents":    list(document.Channels, contents),
		"description": prose(document.Description),
		"quick start": l.quickStartOf(p),
		"channels":    list(document.Channels, p.channel),
	})
}

// barOf returns the bar at the top, which links the pages.
func (l layouts) barOf(p page) markup {
	root := escape(p.root)
	return fill(l.bar, values{
		"root":          root,
		"openapi here":  when(p.here == "openapi", ` aria-current="page"`),
		"asyncapi here": when(p.here == "asyncapi", ` aria-current="page"`),
		"demo":          when(p.demo, fill("\n"+`    <a href="{{root}}/demo">Demo</a>`, values{"root": root})),
		"metrics":       when(p.metrics, fill("\n"+`    <a href="{{root}}/metrics">Metrics</a>`, values{"root": root})),
	})
}

// quickStartOf returns the commands to try the service out with.
func (l layouts) quickStartOf(p page) markup {
	prefix := escape(p.prefix)
	v := values{"prefix": prefix}
	if p.demo {
		v["where"] = ` (in demo mode anyone gets one)`
		v["token command"] = fill(demoToken, values{"prefix": prefix})
		v["backend"] = ""
	} else {
		v["where"] = `, here with the gateway's own <code>token</code> command and its <code>KEY</code>`
		v["token command"] = ownToken
		v["backend"] = ownBackend
	}
	return fill(l.quickStart, v)
}

const (
	demoToken markup = `JWT=$(curl -s -d '{"user_id": 1}' -H 'Content-Type: application/json' <span data-origin="http">http://localhost:8001</span>{{prefix}}/demo/token | cut -d'"' -f4)`
	ownToken  markup = `JWT=$(chat-transportation token -user 1)`

	ownBackend markup = `
  <p>Without the messaging service nobody answers; <code>chat-transportation backend</code> stands in for it. Any backend reaches user 1 like this:</p>
  <pre class="copy"><code>rabbitmqadmin publish exchange=websockets routing_key=1 payload='{"hello":"user 1"}'</code></pre>`
)

// contents returns what the table of contents has about a channel.
func contents(c asyncChannel) markup {
	return fill(`
    <li>{{link}}
      <ul>{{messages}}{{close codes}}
      </ul>
    </li>`, values{
		"link": linkTo(c.ID, c.Title),
		"messages": list(c.Operations, func(o asyncOperation) markup {
			return list(o.Messages, func(m asyncMessage) markup {
				return "\n        <li>" + linkTo(m.ID, m.Title) + "</li>"
			})
		}),
		"close codes": when(len(c.CloseCodes) > 0, "\n"+`        <li><a href="#close-codes">Close codes</a></li>`),
	})
}

// linkTo returns a link to another place of the same page.
func linkTo(id, title string) markup {
	return fill(`<a href="#{{id}}">{{title}}</a>`, values{"id": escape(id), "title": escape(title)})
}

func (p page) channel(c asyncChannel) markup {
	return fill(`
<section id="{{id}}">
  <h2>{{title}} <span class="tag">{{protocol}}</span></h2>
  {{address}}
  {{description}}
  {{facts}}
  {{operations}}
  {{close codes}}
</section>
`, values{
		"id":          escape(c.ID),
		"title":       escape(c.Title),
		"protocol":    escape(c.Protocol),
		"address":     when(c.Protocol == "ws", `<p class="address"><code>`+escape(p.prefix+c.Address)+`</code></p>`),
		"description": prose(c.Description),
		"facts": when(len(c.Facts) > 0, `<dl class="facts">`+list(c.Facts, func(f asyncFact) markup {
			return "\n    <div><dt>" + escape(f.Name) + "</dt><dd>" + escape(f.Value) + "</dd></div>"
		})+"\n  </dl>"),
		"operations":  list(c.Operations, operation),
		"close codes": when(len(c.CloseCodes) > 0, closeCodes(c.CloseCodes, c.CloseNote)),
	})
}

func operation(o asyncOperation) markup {
	class, direction := markup("received"), markup("read by the gateway")
	if o.Sent {
		class, direction = "sent", "sent by the gateway"
	}
	var facts markup
	for i, fact := range o.Facts {
		facts += when(i > 0, " · ") + "<code>" + escape(fact.Name) + ": " + escape(fact.Value) + "</code>"
	}
	return fill(`
  <div class="operation {{class}}">
    <h3>{{title}} <span class="tag">{{direction}}</span></h3>
    {{summary}}
    {{facts}}
    {{messages}}
  </div>
  `, values{
		"class":     class,
		"title":     escape(o.Title),
		"direction": direction,
		"summary":   prose(o.Summary),
		"facts":     when(facts != "", small(facts)),
		"messages":  list(o.Messages, message),
	})
}

func message(m asyncMessage) markup {
	payload := small(escape(m.Type))
	if len(m.Members) > 0 {
		payload = members(m.Members)
	}
	return fill(`
    <article id="{{id}}">
      <h4>{{link}}</h4>
      <div class="summary">{{summary}}</div>
      {{description}}
      {{payload}}
      {{examples}}
    </article>
    `, values{
		"id":          escape(m.ID),
		"link":        linkTo(m.ID, m.Title),
		"summary":     prose(m.Summary),
		"description": prose(m.Description),
		"payload":     payload,
		"examples":    list(m.Examples, example),
	})
}

func members(all []asyncMember) markup {
	return fill(`<div class="wide"><table>
        <thead><tr><th scope="col">member</th><th scope="col">type</th><th scope="col">meaning</th></tr></thead>
        <tbody>{{rows}}
        </tbody>
      </table></div>`, values{"rows": list(all, func(m asyncMember) markup {
		return fill(`
          <tr><th scope="row"><code>{{name}}</code>{{optional}}</th><td>{{type}}</td><td>{{description}}</td></tr>`, values{
			"name":        escape(m.Name),
			"optional":    when(!m.Required, ` <span class="small">optional</span>`),
			"type":        escape(m.Type),
			"description": prose(m.Description),
		})
	})})
}

func example(e asyncExample) markup {
	return fill(`
      {{summary}}
      <pre class="copy"><code>{{JSON}}</code></pre>
      `, values{"summary": when(e.Summary != "", small(escape(e.Summary))), "JSON": escape(e.JSON)})
}

func closeCodes(codes []asyncCloseCode, note string) markup {
	return fill(`
  <h3 id="close-codes">Close codes</h3>
  <p>Those that the service sends are bold; the others come from clients, or stand for a connection that ended without a close frame.</p>
  <div class="wide"><table class="codes">
    <thead><tr><th scope="col">code</th><th scope="col">when</th><th scope="col">reason</th><th scope="col">what to do</th></tr></thead>
    <tbody>{{rows}}
    </tbody>
  </table></div>
  {{note}}
  `, values{"note": prose(note), "rows": list(codes, func(c asyncCloseCode) markup {
		return fill(`
      <tr{{class}}><th scope="row">{{code}}</th><td>{{when}}</td><td>{{reason}}</td><td>{{client}}</td></tr>`, values{
			"class":  when(c.Sent, ` class="own"`),
			"code":   escape(strconv.Itoa(c.Code)),
			"when":   escape(c.When),
			"reason": escape(c.Reason),
			"client": escape(c.Client),
		})
	})})
}

// small returns a paragraph in small type.
func small(inner markup) markup { return `<p class="small">` + inner + `</p>` }
