package config

import "time"

// Shutdown is how SHUTDOWN_TIMEOUT is dealt out. fx gives all stop hooks one pot of
// time and skips the hooks that are left when it is empty, queue clean-up included; so
// each part gets a slice that it must keep, and the slices add up to less than Total.
type Shutdown struct {
	Total time.Duration
	// Drain is for the connections: confirms, deliveries, close frames.
	Drain time.Duration
	// Window is the part of Drain over which the closes are spread: what was asked for,
	// but never more than half of it, since the last to be closed needs time as well.
	Window time.Duration
	// Listener is for HTTP requests that are being answered.
	Listener time.Duration
	// Broker is for each of the two AMQP connections: queues gone, last confirms.
	Broker time.Duration
	// Telemetry is for each of the last push of metrics and the last export of spans.
	Telemetry time.Duration
}

// parts lists the slices as often as they are spent.
func (s Shutdown) parts() []time.Duration {
	return []time.Duration{s.Drain, s.Listener, s.Broker, s.Broker, s.Telemetry, s.Telemetry}
}

func (v *validator) shutdown(env environment) Shutdown {
	v.duration("SHUTDOWN_TIMEOUT", env.ShutdownTimeout, 100*time.Millisecond, time.Hour)
	total := env.ShutdownTimeout
	s := Shutdown{
		Total:     total,
		Drain:     total * 74 / 100,
		Window:    min(env.DrainWindow, total*37/100),
		Listener:  total * 5 / 100,
		Broker:    total * 7 / 100,
		Telemetry: total * 2 / 100,
	}
	var sum time.Duration
	for _, part := range s.parts() {
		sum += part
	}
	if sum > total {
		v.fault("SHUTDOWN_TIMEOUT", "is too short: its parts need %s", sum)
	}
	v.duration("SHUTDOWN_DRAIN_WINDOW", env.DrainWindow, 0, time.Hour)
	return s
}
