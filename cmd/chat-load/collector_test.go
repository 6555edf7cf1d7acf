package main

import (
	"context"
	"io"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// collectorPercent returns the GOGC that this process runs with.
func collectorPercent() uint64 {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func TestThisProcessCollectsLessUnlessToldHowOften(t *testing.T) {
	before := collectorPercent()
	for value, want := range map[string]uint64{"": generatorPercent, "50": before, "off": before} {
		undo := collectLess(func(name string) (string, bool) { return value, name == collectorVariable })
		if got := collectorPercent(); got != want {
			t.Errorf("GOGC=%s: runs with %d, want %d", value, got, want)
		}
		undo()
		if got := collectorPercent(); got != before {
			t.Errorf("GOGC=%s: afterwards it is %d, before %d", value, got, before)
		}
	}
	undo := collectLess(nothing)
	defer undo()
	if got := collectorPercent(); got != generatorPercent {
		t.Errorf("without the variable: runs with %d", got)
	}
}

// A run does collect less, and leaves nothing of that behind.
func TestARunCollectsLess(t *testing.T) {
	before := collectorPercent()
	during := make(chan uint64, 1)
	g := newStandIn(t, func(ctx context.Context, _ int64, ws *websocket.Conn) {
		during <- collectorPercent()
		_, _, _ = ws.Read(ctx) // until the end
	})
	code := command(t.Context(), strings.Fields("idle -users 1 -duration 1ms -settle 0s -amqp none -url "+g.server.URL+"/base"), withKey, nil, io.Discard, io.Discard)
	if got := <-during; code != exitOK || got != generatorPercent || collectorPercent() != before {
		t.Errorf("exit code %d: %d during the run, %d before and %d after", code, got, before, collectorPercent())
	}
}

func TestOnlyWorkersThatGenerateLoadCollectLess(t *testing.T) {
	for _, c := range []struct {
		target      string
		environment []string
		want        []string
	}{
		{targetGateway, []string{"A=b"}, []string{"A=b", "CHAT_LOAD_WORKER=1", "GOGC=400"}},
		{targetWebSTOMP, []string{"XGOGC=7", "GOGC="}, []string{"XGOGC=7", "GOGC=", "CHAT_LOAD_WORKER=1", "GOGC=400"}},
		{targetGateway, []string{"GOGC=off"}, []string{"GOGC=off", "CHAT_LOAD_WORKER=1"}},
		{targetAMQP, []string{"A=b"}, []string{"A=b", "CHAT_LOAD_WORKER=1"}},
		{targetAMQP, []string{"GOGC=50"}, []string{"GOGC=50", "CHAT_LOAD_WORKER=1"}},
	} {
		if got := workerEnvironment(c.environment, c.target); !slices.Equal(got, c.want) {
			t.Errorf("%s with %q: %q, want %q", c.target, c.environment, got, c.want)
		}
	}
}
