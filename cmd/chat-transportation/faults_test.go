package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// What the fault tests have in common. Their quick form runs with all other tests;
// scripts/soak runs the same tests for longer and gathers their figures.

// schedulingAllowance is what a bound of the contract is stretched by in a test: two
// cores that also run the broker, a hundred clients and the race detector are late by
// themselves.
const schedulingAllowance = 1500 * time.Millisecond

// soakRounds returns SOAK_ROUNDS, or quick where it is not set.
func soakRounds(quick int) int {
	if rounds, err := strconv.Atoi(os.Getenv("SOAK_ROUNDS")); err == nil && rounds > 0 {
		return rounds
	}
	return quick
}

// soakDuration returns SOAK_DURATION, or quick where it is not set.
func soakDuration(quick time.Duration) time.Duration {
	if duration, err := time.ParseDuration(os.Getenv("SOAK_DURATION")); err == nil && duration > 0 {
		return duration
	}
	return quick
}

// figure reports a measured value; scripts/soak makes a table of these lines.
func figure(t *testing.T, name string, value any, unit string) {
	t.Helper()
	if d, ok := value.(time.Duration); ok {
		value, unit = strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64), "ms"
	}
	t.Logf("FIGURE %s %v %s", name, value, unit)
}

// plain builds the program without the race detector, which would make tests with
// thousands of users a test of the detector.
var plain = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binary), "chat-transportation-plain")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	return path, build.Run()
})

// plainBinary returns the path of the program built without the race detector.
func plainBinary(t *testing.T) string {
	t.Helper()
	path, err := plain()
	if err != nil {
		t.Fatalf("build the program: %v", err)
	}
	return path
}

// awaited waits for a condition within the limit.
func awaited(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}

// oneShot is an HTTP client that keeps no connection, since each would be a goroutine
// of the service.
var oneShot = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

// get returns status and body of a GET, 0 where there is no answer.
func get(url string) (int, string) {
	response, err := oneShot.Get(url)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

// metric returns a sample of /metrics, -1 where there is none. series is a name with
// its labels, as the exposition has them.
func (p *instance) metric(series string) float64 {
	_, text := get(p.url + "/metrics")
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, series+" "); found {
			if value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64); err == nil {
				return value
			}
		}
	}
	return -1
}

// goroutines returns how many the instance has, once no idle HTTP connection of this
// process is among them.
func (p *instance) goroutines() int {
	http.DefaultClient.CloseIdleConnections()
	return int(p.metric("go_goroutines"))
}

// guest is a client in a crowd: it costs little, and what it hears goes to a function.
type guest struct {
	user int64
	conn *websocket.Conn
	gone chan struct{} // closed when err is set
	err  error
}

// enter connects a user; hear is called for each frame, by one goroutine. The
// connection ends with the test.
func (p *instance) enter(user int64, token string, hear func(g *guest, frame []byte)) (*guest, error) {
	request, err := http.NewRequest(http.MethodPost, p.url+"/messages/get-connection-pass", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Pass string `json:"connection_pass"`
	}
	err = json.NewDecoder(response.Body).Decode(&answer)
	_ = response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("a pass for user %d: %s (%w)", user, response.Status, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, strings.Replace(p.url, "http", "ws", 1)+"/messages/?connection_pass="+answer.Pass, nil)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(-1)
	g := &guest{user: user, conn: conn, gone: make(chan struct{})}
	p.t.Cleanup(func() {
		_ = conn.CloseNow()
		<-g.gone
	})
	go func() {
		defer close(g.gone)
		for {
			_, frame, err := conn.Read(context.Background())
			if err != nil {
				g.err = err
				return
			}
			hear(g, frame)
		}
	}()
	return g, nil
}

// crowd connects the users first to first+count-1, several at a time.
func (p *instance) crowd(first int64, count int, hear func(g *guest, frame []byte)) []*guest {
	p.t.Helper()
	tokens := make([]string, count)
	for i := range tokens {
		tokens[i] = tokenFor(p.t, first+int64(i), time.Hour)
	}
	guests, failures := make([]*guest, count), make([]error, count)
	var entering sync.WaitGroup
	door := make(chan struct{}, 32)
	for i := range count {
		entering.Go(func() {
			door <- struct{}{}
			defer func() { <-door }()
			guests[i], failures[i] = p.enter(first+int64(i), tokens[i], hear)
		})
	}
	entering.Wait()
	if err := errors.Join(failures...); err != nil {
		p.t.Fatal(err)
	}
	return guests
}

// TestReliabilityRows: every test that docs/reliability.md names is there, so that each
// of its rows is held by one.
func TestReliabilityRows(t *testing.T) {
	document, err := os.ReadFile("../../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources strings.Builder
	err = filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		sources.Write(source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test\\w+)(?:/([^`]+))?`")
	rows := 0
	for line := range strings.Lines(string(document)) {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) < 5 || strings.HasPrefix(line, "| fault |") || strings.HasPrefix(line, "| attack |") || strings.HasPrefix(line, "| --- |") {
			continue
		}
		rows++
		found := names.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(found) == 0 {
			t.Errorf("no test holds the row %s", line)
		}
		for _, name := range found {
			if !strings.Contains(sources.String(), "func "+name[1]+"(t *testing.T)") {
				t.Errorf("there is no test %s", name[1])
			}
			// A subtest's name is a text, or the beginning of one.
			for subtest := range strings.SplitSeq(strings.ReplaceAll(name[2], "_", " "), "/") {
				if !strings.Contains(sources.String(), `"`+subtest) {
					t.Errorf("the test %s has no subtest %q", name[1], subtest)
				}
			}
		}
	}
	if rows == 0 {
		t.Error("there are no rows")
	}
}
