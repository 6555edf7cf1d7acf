package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func idleRun(label string, gateway *processReport, broker *processReport, perSecond float64) *report {
	return &report{Label: label, Scenario: scenarioIdle, Target: label, Connections: 10, OK: true,
		Gateway: gateway, Broker: broker, Connect: &connectReport{PerSecond: perSecond}}
}

func TestComparison(t *testing.T) {
	memory := func(kilobytes float64) *processReport {
		return &processReport{RSSPerConnection: kilobytes * 1024, CPUPercent: 1.5}
	}
	cpu := func(seconds float64) *processReport { return &processReport{CPUPer100k: &seconds} }
	deliver := func(label string, seconds float64) *report {
		return &report{Label: label, Scenario: scenarioDelivery, Target: targetGateway, Connections: 5, OK: true, Gateway: cpu(seconds), Broker: cpu(1),
			Messages: &messageReport{PerSecond: 1000 * seconds}, Latency: &latencyReport{P50: 1, P99: 2.345}}
	}
	got := comparison([]*report{
		idleRun("gateway", memory(10), memory(2), 100),
		idleRun("webstomp", nil, memory(120), 50),
		idleRun("gateway", memory(11), memory(3), 300),
		idleRun("gateway", memory(8), memory(1), 200),
		deliver("gateway", 2), deliver("gateway", 3),
	}, [][2]string{{"gateway", "webstomp"}})
	want := `| median (min–max) | gateway | webstomp | gateway / webstomp |
| --- | --- | --- | --- |
| idle, 10 connections: memory a connection, KB | 12.0 (9.0–14.0) | 120.0 | 0.10 |
| idle, 10 connections: of which gateway, KB | 10.0 (8.0–11.0) | – | – |
| idle, 10 connections: CPU, % of a core | 3.0 (3.0–3.0) | 1.5 | 2.00 |
| idle, 10 connections: connects/s | 200 (100–300) | 50 | 4.00 |
| delivery, flood, 5 connections: messages/s | 2500 (2000–3000) | – | – |
| delivery, flood, 5 connections: CPU s per 100,000 | 3.50 (3.00–4.00) | – | – |
| delivery, flood, 5 connections: of which gateway | 2.50 (2.00–3.00) | – | – |
| delivery, flood, 5 connections: p50, ms | 1.00 (1.00–1.00) | – | – |
| delivery, flood, 5 connections: p99, ms | 2.35 (2.35–2.35) | – | – |
`
	// 2.345 is not exact in binary; either way of rounding is right.
	got = strings.ReplaceAll(got, "2.35", "2.34")
	want = strings.ReplaceAll(want, "2.35", "2.34")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestCompareCommand(t *testing.T) {
	good := idleRun("a", nil, nil, 1)
	bad := idleRun("b", nil, nil, 2)
	bad.OK, bad.Problems = false, []string{"1 messages were lost"}
	line := func(r *report) string {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + "\n"
	}
	file := filepath.Join(t.TempDir(), "runs")
	if err := os.WriteFile(file, []byte(line(good)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, arguments, stdin string
		code                   int
		want                   string
	}{
		{"good", "", line(good), exitOK, "| idle, 10 connections: connects/s | 1 |"},
		{"a file", file, "", exitOK, "| idle, 10 connections: connects/s | 1 |"},
		{"a bad run", "-ratios b/a", line(good) + line(bad), exitFailed, "NOT OK: idle, 10 connections, b: 1 messages were lost"},
		{"nothing", "", "", exitFailed, "no runs"},
		{"no JSON", "", line(good) + "x", exitFailed, "run 2"},
		{"no pair", "-ratios a", line(good), exitUsage, "no pair"},
		{"no file", "/does/not/exist", "", exitFailed, "no such file"},
		{"two files", "a b", "", exitUsage, "one FILE"},
		{"no flag", "-x", "", exitUsage, "-ratios"},
		{"help", "-h", "", exitOK, "Markdown"},
	} {
		var out bytes.Buffer
		arguments := append([]string{"compare"}, strings.Fields(c.arguments)...)
		if code := command(t.Context(), arguments, nothing, strings.NewReader(c.stdin), &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: exit code %d: %s", c.name, code, &out)
		}
	}
}
