package app

import (
	"context"
	"sync"
	"time"
)

// Check is one thing that readiness depends on.
type Check struct {
	// Name is the member of the answer's "checks".
	Name string
	// Probe returns nil while all is well, else an error whose text says why not. It
	// ends with its context.
	Probe func(context.Context) error
}

// Readiness asks whether the instance can serve. It is safe for concurrent use.
type Readiness struct{ checks []Check }

// readinessTimeout bounds all checks together.
const readinessTimeout = 2 * time.Second

// NewReadiness returns the use case over the checks.
func NewReadiness(checks []Check) *Readiness { return &Readiness{checks: checks} }

// Report runs all checks side by side, for two seconds at most, and returns for
// each "ok" or why not, and whether all are ok.
func (u *Readiness) Report(ctx context.Context) (map[string]string, bool) {
	ctx, cancel := context.WithTimeout(ctx, readinessTimeout)
	defer cancel()
	results := make([]error, len(u.checks))
	var running sync.WaitGroup
	for i, check := range u.checks {
		running.Go(func() { results[i] = check.Probe(ctx) })
	}
	running.Wait()
	report, ready := make(map[string]string, len(u.checks)), true
	for i, check := range u.checks {
		report[check.Name] = "ok"
		if results[i] != nil {
			report[check.Name], ready = results[i].Error(), false
		}
	}
	return report, ready
}
