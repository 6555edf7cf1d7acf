package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/aleksandrshaulskyi/chat-transportation/"

// TestDependencyRule holds the rule of docs/architecture.md: domain <- app <- modules
// <- cmd; no module imports another (config knows the modules' Config types); fx only
// in a module.go and in cmd; the domain knows the standard library only.
func TestDependencyRule(t *testing.T) {
	files := 0
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(filepath.ToSlash(relative), imported); why != "" {
				t.Errorf("%s imports %s: %s", relative, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were looked at", files)
	}
}

// forbidden says why a file may not import a package, or nothing where it may.
func forbidden(file, imported string) string {
	own, internal := strings.CutPrefix(imported, modulePath)
	layer, rest, _ := strings.Cut(file, "/")
	test := strings.HasSuffix(file, "_test.go")
	switch {
	case strings.HasPrefix(imported, "go.uber.org/fx") && layer != "cmd" && filepath.Base(file) != "module.go" && !test:
		return "fx is for module.go and cmd"
	case layer == "domain" && strings.Contains(strings.SplitN(imported, "/", 2)[0], "."):
		return "the domain knows the standard library only"
	case !internal:
		return ""
	case layer == "app" && !strings.HasPrefix(own, "domain") && !strings.HasPrefix(own, "app"):
		return "app knows the domain only"
	case layer == "modules" && strings.HasPrefix(own, "cmd"):
		return "nothing knows cmd"
	case layer == "modules" && strings.HasPrefix(own, "modules/"):
		name, _, _ := strings.Cut(rest, "/")
		other, _, _ := strings.Cut(strings.TrimPrefix(own, "modules/"), "/")
		if name != other && name != "config" {
			return "modules meet through the ports of app"
		}
	}
	return ""
}

func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		file, imported string
		allowed        bool
	}{
		{"domain/message.go", "time", true},
		{"domain/message.go", "go.uber.org/zap", false},
		{"domain/message.go", modulePath + "app", false},
		{"app/send.go", modulePath + "domain", true},
		{"app/send.go", modulePath + "modules/hub", false},
		{"modules/hub/hub.go", modulePath + "app", true},
		{"modules/hub/hub.go", modulePath + "modules/rabbit", false},
		{"modules/hub/hub.go", "go.uber.org/fx", false},
		{"modules/hub/module.go", "go.uber.org/fx", true},
		{"modules/rabbit/rabbit_test.go", modulePath + "modules/rabbit/rabbittest", true},
		{"modules/config/config.go", modulePath + "modules/rabbit", true},
		{"modules/config/config.go", modulePath + "cmd/chat-transportation", false},
		{"cmd/chat-transportation/main.go", modulePath + "modules/rabbit", true},
	} {
		if why := forbidden(c.file, c.imported); (why == "") != c.allowed {
			t.Errorf("%s imports %s: %q", c.file, c.imported, why)
		}
	}
}
