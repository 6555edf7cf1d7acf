package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVariable) != "" {
		os.Exit(serveWorker(os.Stdin, os.Stdout))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	defer func() { _ = os.RemoveAll(program.folder) }()
	code := rabbittest.Suite{M: m}.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// program is the gateway's program, which is built when the first test wants it.
var program struct {
	once   sync.Once
	folder string
	fault  error
}

// gatewayProgram returns the path of the gateway's program.
func gatewayProgram(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		if program.folder, program.fault = os.MkdirTemp("", "chat-load"); program.fault != nil {
			return
		}
		build := exec.Command("go", "build", "-o", program.folder, "../chat-transportation")
		if output, err := build.CombinedOutput(); err != nil {
			program.fault = fmt.Errorf("build the gateway: %w: %s", err, output)
		}
	})
	if program.fault != nil {
		t.Fatal(program.fault)
	}
	return filepath.Join(program.folder, "chat-transportation")
}
