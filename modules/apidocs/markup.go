package apidocs

import (
	"html"
	"strings"
)

// markup is HTML that may go into a page as it is. A string variable is no markup
// until escape has made it harmless: the compiler refuses it in a layout. Constants
// are markup without further ado, since they are written here and not read from
// somewhere.
//
// The pages are few and rendered once, so that this does instead of html/template:
// that finds methods by their names at run time, so that the linker has to keep every
// exported method in the program. The binary was half as large again.
type markup string

// escape returns text as the content of an element, or of an attribute's value in
// quotes. It does not make a script, a style sheet or a URL with a scheme of its own
// harmless: no layout has text in such a place.
func escape(text string) markup { return markup(html.EscapeString(text)) }

// values are what a layout's places hold, by the names of the places.
type values map[string]markup

// fill returns the layout, which is a constant or an embedded file, with its places,
// like {{name}}, replaced by their values. What is in a value is not looked at again.
// Places in tags stand between double quotes, but for those of constant attributes.
// It panics where a place has no value or a value no place: both are written in this
// package, so that this is a slip of the pen, and the tests, which render every
// layout, meet it.
func fill(layout markup, v values) markup {
	var filled strings.Builder
	used := make(map[string]bool, len(v))
	rest := string(layout)
	for {
		before, after, found := strings.Cut(rest, "{{")
		filled.WriteString(before)
		if !found {
			break
		}
		name, tail, closed := strings.Cut(after, "}}")
		value, known := v[name]
		if !closed || !known {
			panic("apidocs: a layout has the place " + name + ", which has no value")
		}
		filled.WriteString(string(value))
		used[name] = true
		rest = tail
	}
	for name := range v {
		if !used[name] {
			panic("apidocs: a layout has no place " + name)
		}
	}
	return markup(filled.String())
}

// list returns the markup of all items, one after the other.
func list[T any](items []T, render func(T) markup) markup {
	var all strings.Builder
	for _, item := range items {
		all.WriteString(string(render(item)))
	}
	return markup(all.String())
}

// when returns m where the condition holds, else nothing.
func when(condition bool, m markup) markup {
	if condition {
		return m
	}
	return ""
}

// prose turns the little Markdown that the document uses into HTML: paragraphs,
// parted by empty lines, and code between backticks. All text is escaped.
func prose(markdown string) markup {
	return list(strings.Split(strings.TrimSpace(markdown), "\n\n"), func(paragraph string) markup {
		if paragraph == "" {
			return ""
		}
		inner, code := markup(""), false
		for part := range strings.SplitSeq(paragraph, "`") {
			if code {
				inner += "<code>" + escape(part) + "</code>"
			} else {
				inner += escape(part)
			}
			code = !code
		}
		return "<p>" + inner + "</p>"
	})
}
