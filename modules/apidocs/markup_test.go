package apidocs

import (
	"encoding/xml"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// hostile are texts that try to leave the place where they are put.
var hostile = []string{
	`<script>alert(1)</script>`,
	`</code></pre><img src=x onerror=alert(1)>`,
	`" onclick="alert(1)`,
	`' onclick='alert(1)`,
	`"><svg onload=alert(1)>`,
	`<!--`, `]]>`, `<![CDATA[`, `&lt;b&gt; &amp; &#60;&`, `{{root}}`, `}}{{`,
}

// parsed is what a parser finds in a page.
type parsed struct {
	skeleton []string // tags with the names of their attributes
	texts    []string // character data and the values of attributes, unescaped
}

func parse(t *testing.T, page markup) parsed {
	t.Helper()
	decoder := xml.NewDecoder(strings.NewReader(string(page)))
	decoder.Strict, decoder.AutoClose, decoder.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	var p parsed
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			return p
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, page)
		}
		switch token := token.(type) {
		case xml.StartElement:
			tag := token.Name.Local
			for _, attribute := range token.Attr {
				tag += " " + attribute.Name.Local
				p.texts = append(p.texts, attribute.Value)
			}
			p.skeleton = append(p.skeleton, tag)
		case xml.EndElement:
			p.skeleton = append(p.skeleton, "/"+token.Name.Local)
		case xml.CharData:
			p.texts = append(p.texts, string(token))
		case xml.Comment:
			p.skeleton = append(p.skeleton, "a comment")
		}
	}
}

func TestEscape(t *testing.T) {
	for _, text := range hostile {
		p := parse(t, fill(`<p title="{{text}}">{{text}}</p>`, values{"text": escape(text)}))
		if !slices.Equal(p.skeleton, []string{"p title", "/p"}) {
			t.Errorf("%s became %q", text, p.skeleton)
		}
		if !slices.Equal(p.texts, []string{text, text}) {
			t.Errorf("%s reads %q", text, p.texts)
		}
	}
}

// TestPagesEscape puts hostile text into every place of the pages that is not
// constant: it stays text.
func TestPagesEscape(t *testing.T) {
	layouts, err := readLayouts()
	if err != nil {
		t.Fatal(err)
	}
	render := func(text string) []parsed {
		var document asyncDocument
		fillStrings(reflect.ValueOf(&document).Elem(), text)
		// Another channel has what the first doesn't show: an address, and a payload
		// without members.
		var other asyncChannel
		fillStrings(reflect.ValueOf(&other).Elem(), text)
		other.Protocol = "ws"
		other.Operations[0].Messages[0].Members = nil
		document.Channels = append(document.Channels, other)
		var all []parsed
		for _, demo := range []bool{false, true} {
			p := page{root: text, prefix: text, here: text, demo: demo, metrics: demo}
			all = append(all, parse(t, layouts.asyncPage(p, document)), parse(t, layouts.swaggerPage(p)))
		}
		return all
	}
	const harmless = "harmless"
	want := render(harmless)
	for _, text := range hostile {
		for i, got := range render(text) {
			if !slices.Equal(got.skeleton, want[i].skeleton) {
				t.Errorf("%s changes page %d", text, i)
			}
			for j, harmlessText := range want[i].texts {
				if expected := strings.ReplaceAll(harmlessText, harmless, text); j >= len(got.texts) || got.texts[j] != expected {
					t.Fatalf("%s: text %d of page %d is not %q", text, j, i, expected)
				}
			}
		}
	}
	if shown := strings.Count(strings.Join(want[0].texts, "\n"), harmless); shown < 50 {
		t.Errorf("only %d places have text that is not constant", shown)
	}
}

// fillStrings sets every string in v to text; slices get one element.
func fillStrings(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillStrings(v.Index(0), text)
	case reflect.Struct:
		for i := range v.NumField() {
			fillStrings(v.Field(i), text)
		}
	}
}

func TestFillPanics(t *testing.T) {
	for _, test := range []struct {
		name   string
		layout markup
		values values
	}{
		{"no value", `<p>{{a}}{{b}}</p>`, values{"a": "1"}},
		{"no place", `<p>{{a}}</p>`, values{"a": "1", "b": "2"}},
		{"open", `<p>{{a</p>`, values{"a</p>": "1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			fill(test.layout, test.values)
		})
	}
}
