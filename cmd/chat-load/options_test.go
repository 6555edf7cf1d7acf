package main

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const secret = "a-secret-of-the-tests"

func withKey(name string) (string, bool) { return secret, name == "KEY" }
func nothing(string) (string, bool)      { return "", false }

func TestDefaults(t *testing.T) {
	var messages bytes.Buffer
	p, err := parsePlan([]string{"delivery"}, withKey, &messages)
	if err != nil {
		t.Fatalf("%v: %s", err, &messages)
	}
	if p.scenario != scenarioDelivery || p.target != targetGateway || string(p.key) != secret || p.users != 100 || p.perUser != 1 ||
		p.rate != 1000 || p.bytes != 330 || p.window != 1024 || p.concurrency != 128 || p.label != targetGateway ||
		!slices.Equal(p.urls, []string{"http://127.0.0.1:8001"}) || !p.useBroker || p.workers != 1 {
		t.Errorf("%+v", p)
	}
	for scenario, rate := range map[string]float64{"inbound": 1000, "roundtrip": 500, "churn": 50, "idle": 0, "storm": 0} {
		if p, err := parsePlan([]string{scenario}, withKey, &messages); err != nil || p.rate != rate {
			t.Errorf("%s: rate %g, %v", scenario, p.rate, err)
		}
	}
	if p, err := parsePlan([]string{"storm", "-users", "3", "-connections-per-user", "2", "-key", "other", "-label", "x"}, withKey, &messages); err != nil ||
		p.concurrency != 1000 || p.window != 192 || string(p.key) != "other" || p.label != "x" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := parsePlan([]string{"inbound", "-rate", "flood", "-target", "webstomp"}, nothing, &messages); err != nil || p.rate != 0 || p.urls[0] != defaultURLs[targetWebSTOMP] {
		t.Errorf("%+v, %v", p, err)
	}
	if messages.Len() > 0 {
		t.Errorf("printed: %s", &messages)
	}
}

func TestEveryFaultIsNamedAtOnce(t *testing.T) {
	var messages bytes.Buffer
	_, err := parsePlan(strings.Fields("nonsense -target x -scope x -algorithm RS256 -users 0 -connections-per-user 0 -first-user 0 "+
		"-workers 0 -messages -1 -window -1 -concurrency -1 -bytes 10 -duration 0s -settle -1s -drain -1s -patience -1s "+
		"-connect-rate -1 -rate fast -source-addresses here -gateway-pid 0 -broker-pid x -amqp http://user:topsecret@host -restart"), nothing, &messages)
	if !errors.Is(err, errUsage) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		"the scenario", "-target", "-scope", "-algorithm", "-users", "-connections-per-user", "-first-user", "-workers is", "-messages", "-window",
		"-concurrency", "-bytes", "-duration", "-settle", "-drain", "-patience", "-connect-rate", "-rate is", "-source-addresses", "-gateway-pid",
		"-broker-pid", "-amqp", "-restart",
	} {
		if !strings.Contains(messages.String(), want) {
			t.Errorf("no word about %s in: %s", want, &messages)
		}
	}
	if strings.Contains(messages.String(), "topsecret") {
		t.Errorf("the password of the URL is printed: %s", &messages)
	}
}

func TestSingleFaults(t *testing.T) {
	for line, want := range map[string]string{
		"":                             "which scenario",
		"idle more":                    "unexpected argument",
		"delivery -amqp none":          "needs the broker",
		"idle -target amqp -amqp none": "needs the broker",
		"idle -url ftp://host":         "-url",
		"idle -url http://":            "-url",
		"idle -url http://a,:":         "-url",
		"churn -rate flood":            "-rate",
		"idle -rate inf":               "-rate",
		"idle -workers 101":            "-workers",
		"idle -messages 4294967296":    "-messages",
		"idle -users 20000000":         "-users",
		"idle -target amqp -connections-per-user 2":      "-connections-per-user",
		"storm -restart -target webstomp":                "-restart",
		"idle -first-user 9223372036854775807":           "-first-user",
		"idle -source-addresses 127.0.0.9-127.0.0.2":     "no range",
		"idle -source-addresses 127.0.0.1-::1":           "no range",
		"idle -gateway-pid 99999999":                     "-gateway-pid: there is no process 99999999",
		"idle -broker-pid 99999999":                      "-broker-pid: there is no process 99999999",
		"idle -nonsense":                                 "-nonsense\nchat-load -h explains",
		"idle -source-addresses 10.0.0.0-10.255.255.255": "addresses",
	} {
		var messages bytes.Buffer
		if _, err := parsePlan(strings.Fields(line), withKey, &messages); !errors.Is(err, errUsage) || !strings.Contains(messages.String(), want) || strings.Count(messages.String(), "\n") > 4 {
			t.Errorf("%q: %v: %s", line, err, &messages)
		}
	}
	var messages bytes.Buffer
	if _, err := parsePlan([]string{"idle"}, nothing, &messages); err == nil || !strings.Contains(messages.String(), "KEY") {
		t.Errorf("without a key: %v: %s", err, &messages)
	}
}

func TestHelpNamesWhatMattersAndNoSecret(t *testing.T) {
	var out bytes.Buffer
	if _, err := parsePlan([]string{"-h"}, withKey, &out); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range append([]string{"PASS_REQUESTS_PER_MINUTE", "WS_MESSAGES_PER_SECOND", "compare", "-source-addresses"}, scenarios...) {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help does not name %s", want)
		}
	}
	if strings.Contains(out.String(), secret) {
		t.Error("the help shows the key")
	}
	if code := command(t.Context(), []string{"-h"}, withKey, nil, &out, &out); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if code := command(t.Context(), []string{"idle", "-nonsense"}, withKey, nil, &out, &out); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
}

func TestParseAddresses(t *testing.T) {
	got, err := parseAddresses("127.0.0.254-127.0.1.1, ::1")
	want := []netip.Addr{netip.MustParseAddr("127.0.0.254"), netip.MustParseAddr("127.0.0.255"), netip.MustParseAddr("127.0.1.0"),
		netip.MustParseAddr("127.0.1.1"), netip.MustParseAddr("::1")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSharesCoverAllUsers(t *testing.T) {
	for _, c := range []struct{ users, workers int }{{1, 1}, {10, 3}, {7, 7}, {1000, 16}} {
		p := plan{users: c.users, workers: c.workers}
		next := 0
		for _, it := range p.shares() {
			if it.From != next || it.To <= it.From {
				t.Errorf("%+v: %v", c, p.shares())
			}
			next = it.To
		}
		if next != c.users {
			t.Errorf("%+v: %v", c, p.shares())
		}
		company := &company{shares: p.shares()}
		for _, whole := range []uint64{0, 1, 5, 1_000_003} {
			var sum uint64
			for i := range company.shares {
				sum += company.count(i, whole)
			}
			if sum != whole {
				t.Errorf("%+v: the shares of %d add up to %d", c, whole, sum)
			}
		}
	}
}

func TestReportsThatAreAboutNothing(t *testing.T) {
	r := newReport(plan{scenario: scenarioDelivery, duration: time.Second})
	r.measure(nil)
	r.conclude()
	if r.OK || r.Gateway != nil {
		t.Errorf("%+v", r)
	}
	r = newReport(plan{scenario: scenarioIdle})
	r.conclude()
	if !r.OK {
		t.Errorf("%+v", r)
	}
}

func TestACheckThatDidNotReachAllUsersFails(t *testing.T) {
	r := newReport(plan{scenario: scenarioIdle, users: 3000})
	r.checking, r.Messages = true, &messageReport{Sent: 1339, Expected: 1339, Received: 1339}
	r.conclude()
	if r.OK || !slices.Contains(r.Problems, "only 1339 of 3000 users were sent the message that checks them") {
		t.Errorf("%+v", r)
	}
}

func TestTurnedAwayIsNotConnected(t *testing.T) {
	c := &connectReport{Connected: 94, Failed: 6, Seconds: 2}
	c.turnAway(14)
	if c.Connected != 80 || c.Failed != 20 || c.PerSecond != 40 || c.Faults["closed at once with 1013"] != 14 {
		t.Errorf("%+v", c)
	}
}

// What a process that has ended used is set against the time in which it was there.
func TestFiguresOfAProcessThatEnded(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(seconds int, cpu time.Duration, rss int64, gone bool, seen int) moment {
		return moment{
			at: began.Add(time.Duration(seconds) * time.Second), gateway: usage{cpu, rss}, known: [3]bool{true}, gone: [3]bool{gone},
			seen: [3]time.Time{began.Add(time.Duration(seen) * time.Second)},
		}
	}
	for name, c := range map[string]struct {
		scenario       string
		connected, end moment
		want           processReport
	}{
		"there": {scenarioDelivery, at(0, 1*time.Second, 300, false, 0), at(20, 3*time.Second, 400, false, 20),
			processReport{SeenSeconds: 20, CPUSeconds: 2, CPUPercent: 10, ConnectCPU: 1, RSSBefore: 200, RSSConnected: 300, RSSAfter: 400}},
		"ends in the middle": {scenarioDelivery, at(0, 1*time.Second, 300, false, 0), at(20, 3*time.Second, 400, true, 4),
			processReport{Gone: true, SeenSeconds: 4, CPUSeconds: 2, CPUPercent: 50, ConnectCPU: 1, RSSBefore: 200, RSSConnected: 300, RSSAfter: 400}},
		"ends before the scenario": {scenarioIdle, at(0, 1*time.Second, 300, true, -3), at(20, 1*time.Second, 300, true, -3),
			processReport{Gone: true, ConnectCPU: 1, RSSBefore: 200, RSSConnected: 300, RSSAfter: 300}},
	} {
		r := newReport(plan{scenario: c.scenario})
		r.Seconds, r.Connect, r.Messages = 20, &connectReport{Connected: 10}, &messageReport{Received: 1000}
		r.measure(map[string]moment{markBefore: at(-5, 0, 200, false, -5), markConnected: c.connected, markBegin: c.connected, markEnd: c.end})
		if got := *r.Gateway; (got.CPUPer100k != nil) == c.want.Gone {
			t.Errorf("%s: CPU a message is %v", name, got.CPUPer100k)
		} else if got.CPUPer100k = nil; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if _, known := cpuPercent(r.Gateway); known == c.want.Gone {
			t.Errorf("%s: compared: %v", name, known)
		}
	}
}
