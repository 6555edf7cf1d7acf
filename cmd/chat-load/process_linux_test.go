package main

import (
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/rabbit/rabbittest"
)

func TestParseUsage(t *testing.T) {
	stat := "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 5 0 0 0 250 50 7 8 20 0 9 0 100 200 300"
	got, err := parseUsage([]byte(stat), []byte("1000 200 3 4 5 6 7"))
	if want := (usage{CPU: 3 * time.Second, RSS: 200 * int64(os.Getpagesize())}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, c := range [][2]string{{"", ""}, {"1 (x) S 1 2", "1 2"}, {stat, "1"}, {stat, "1 x"}, {stat, "0 0 0 0 0 0 0"}, {strings.Replace(stat, " S ", " Z ", 1), "1 2"}} {
		if _, err := parseUsage([]byte(c[0]), []byte(c[1])); !errors.Is(err, errNoProcess) {
			t.Errorf("%q, %q: %v", c[0], c[1], err)
		}
	}
}

func TestOwnProcessIsMeasured(t *testing.T) {
	all, ok := measured{[]int{os.Getpid(), os.Getppid()}}.sample()
	own, err := usageOf(os.Getpid())
	if !ok || err != nil || own.RSS <= 0 || all.RSS <= own.RSS {
		t.Errorf("%+v, %v; %+v, %v", all, ok, own, err)
	}
	if _, ok := (measured{[]int{os.Getpid(), 1 << 30}}).sample(); ok {
		t.Error("a process that does not exist is measured")
	}
	if _, ok := (measured{}).sample(); ok {
		t.Error("no process is measured")
	}
}

func TestListenerIsFound(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network]
		listener, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(listener.Addr().(*net.TCPAddr).Port)
		if pid, err := listenerOn(port); err != nil || pid != os.Getpid() {
			t.Errorf("process %d, %v, want %d", pid, err, os.Getpid())
		}
		if pids := appendListener(nil, listener.Addr().String()); len(pids) != 1 || pids[0] != os.Getpid() {
			t.Errorf("processes %v", pids)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := listenerOn(port); !errors.Is(err, errNoProcess) {
			t.Errorf("after the end: %v", err)
		}
	}
	if pids := appendListener(nil, "192.0.2.1:80"); pids != nil {
		t.Errorf("another machine's listener is looked for here: %v", pids)
	}
}

// The worker that is compared with the gateway runs with Go's default, the others not.
func TestCollectorOfWorkers(t *testing.T) {
	t.Setenv(collectorVariable, "") // which is what a shell without it gives
	stamp := strconv.FormatInt(time.Now().UnixNano(), 10)
	for target, want := range map[string]string{targetGateway: "GOGC=400", targetWebSTOMP: "GOGC=400", targetAMQP: "GOGC="} {
		config := CrewConfig{Target: target, Key: []byte(secret), Algorithm: "HS256", FirstUser: 1, To: 1, PerUser: 1, Envelope: envelopeConfig{330, time.Now()}, Scope: scopeUser}
		if target == targetAMQP {
			config.AMQP = brokerConfig{rabbittest.URL(t), "load-" + stamp + "-websockets", "load-" + stamp + "-database"}
		}
		it, err := startWorker(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		environment, err := os.ReadFile("/proc/" + strconv.Itoa(it.pid()) + "/environ")
		if closed := it.Close(); err != nil || closed != nil {
			t.Fatal(err, closed)
		}
		var got []string
		for entry := range strings.SplitSeq(string(environment), "\x00") {
			if strings.HasPrefix(entry, collectorVariable+"=") {
				got = append(got, entry)
			}
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}
