package hub

import (
	"errors"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// What becomes of a client's message: the values of the label "result".
const (
	resultAccepted    = "accepted"
	resultInvalid     = "invalid"
	resultRateLimited = "rate_limited"
	resultFailed      = "failed"
)

// Why a delivery did not reach a connection: the values of the label "reason".
const (
	dropInvalidBody      = "invalid_body"
	dropInvalidControl   = "invalid_control"
	dropNoConnection     = "no_connection"
	dropConnectionClosed = "connection_closed"
	dropSlowConsumer     = "slow_consumer"
)

// labelOther stands for all close codes that are not in app.CloseCodes.
const labelOther = "other"

// meters are the hub's metrics. The vectors are resolved once: each label value is
// known, and exists at 0 from the start.
type meters struct {
	connections prometheus.Gauge
	users       prometheus.Gauge
	delivered   prometheus.Counter
	pings       prometheus.Counter
	closes      map[string]prometheus.Counter
	received    map[string]prometheus.Counter
	dropped     map[string]prometheus.Counter
	redeemed    map[string]prometheus.Counter
}

func newMeters(registerer prometheus.Registerer) *meters {
	var codes []string
	for _, row := range app.CloseCodes {
		codes = append(codes, strconv.Itoa(int(row.Code)))
	}
	m := &meters{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_hub_active_connections",
			Help: "WebSocket connections that are open now.",
		}),
		users: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "websocket_hub_active_users",
			Help: "Users who have at least one connection now.",
		}),
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "websocket_messages_delivered_total",
			Help: "Messages of backends written to a connection, counted once for each connection.",
		}),
		pings: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "websocket_pings_received_total",
			Help: "Pings of clients. Browsers send none, so a steep rise is a client that floods.",
		}),
	}
	registerer.MustRegister(m.connections, m.users, m.delivered, m.pings)
	m.closes = counters(registerer, "websocket_closes_total",
		"Connections that have ended, by close code; 1006 where there was no close frame.", "code", append(codes, labelOther)...)
	m.received = counters(registerer, "websocket_messages_received_total",
		"Messages of clients, by what became of them.", "result",
		resultAccepted, resultInvalid, resultRateLimited, resultFailed)
	m.dropped = counters(registerer, "websocket_deliveries_dropped_total",
		"Messages of backends that did not reach a connection, by reason.", "reason",
		dropInvalidBody, dropInvalidControl, dropNoConnection, dropConnectionClosed, dropSlowConsumer)
	m.redeemed = counters(registerer, "connection_passes_redeemed_total",
		"Connection passes that clients presented, by result.", "result", "ok", "invalid", "unavailable")
	return m
}

func counters(registerer prometheus.Registerer, name, help, label string, values ...string) map[string]prometheus.Counter {
	vector := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	registerer.MustRegister(vector)
	resolved := make(map[string]prometheus.Counter, len(values))
	for _, value := range values {
		resolved[value] = vector.WithLabelValues(value)
	}
	return resolved
}

// closeLabel returns the label value for a close code; a client may send any code.
func (m *meters) closeLabel(code app.CloseCode) string {
	label := strconv.Itoa(int(code))
	if _, known := m.closes[label]; known {
		return label
	}
	return labelOther
}

func (m *meters) closed(code app.CloseCode) { m.closes[m.closeLabel(code)].Inc() }

// redemption counts a pass that was presented; err is what Connect.Admit returned.
func (m *meters) redemption(err error) {
	switch {
	case err == nil:
		m.redeemed["ok"].Inc()
	case errors.Is(err, app.ErrPassInvalid):
		m.redeemed["invalid"].Inc()
	case errors.Is(err, app.ErrPassStoreUnavailable):
		m.redeemed["unavailable"].Inc()
	}
}
