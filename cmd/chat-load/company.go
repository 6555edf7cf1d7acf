package main

import (
	"context"
	"errors"
	"sync"
)

// share is a range of users, To not included.
type share struct{ From, To int }

// company is several crews that act as one.
type company struct {
	crews  []crew
	shares []share // of users, in order
}

// total returns the number of users of all crews.
func (c *company) total() int { return c.shares[len(c.shares)-1].To - c.shares[0].From }

// part returns the share of a crew in a whole.
func (c *company) part(i int, whole float64) float64 {
	return whole * float64(c.shares[i].To-c.shares[i].From) / float64(c.total())
}

// count returns the share of a crew in a number, so that all shares add up to it.
func (c *company) count(i int, whole uint64) uint64 {
	before, upTo := uint64(c.shares[i].From-c.shares[0].From), uint64(c.shares[i].To-c.shares[0].From)
	total := uint64(c.total())
	return whole*upTo/total - whole*before/total
}

// each runs do for all crews side by side.
func (c *company) each(do func(i int, crew crew) error) error {
	faults := make([]error, len(c.crews))
	var running sync.WaitGroup
	for i, it := range c.crews {
		running.Go(func() { faults[i] = do(i, it) })
	}
	running.Wait()
	return errors.Join(faults...)
}

// Connect implements crew.
func (c *company) Connect(ctx context.Context, order ConnectOrder) (ConnectResult, error) {
	return c.connect(func(i int, it crew) (ConnectResult, error) {
		mine := order
		mine.Rate = c.part(i, order.Rate)
		mine.Concurrency = max(1, int(c.part(i, float64(order.Concurrency))))
		return it.Connect(ctx, mine)
	})
}

// Churn implements crew.
func (c *company) Churn(ctx context.Context, order ChurnOrder) (ConnectResult, error) {
	return c.connect(func(i int, it crew) (ConnectResult, error) {
		mine := order
		mine.Rate = c.part(i, order.Rate)
		mine.Concurrency = max(1, int(c.part(i, float64(order.Concurrency))))
		return it.Churn(ctx, mine)
	})
}

func (c *company) connect(do func(int, crew) (ConnectResult, error)) (whole ConnectResult, err error) {
	results := make([]ConnectResult, len(c.crews))
	err = c.each(func(i int, it crew) (err error) {
		results[i], err = do(i, it)
		return err
	})
	for _, result := range results {
		whole.merge(result)
	}
	return whole, err
}

// Drop implements crew.
func (c *company) Drop(ctx context.Context) error {
	return c.each(func(_ int, it crew) error { return it.Drop(ctx) })
}

// Send implements crew.
func (c *company) Send(ctx context.Context, order SendOrder) error {
	return c.each(func(i int, it crew) error {
		mine := order
		mine.Rate = c.part(i, order.Rate)
		if order.Messages > 0 {
			if mine.Messages = c.count(i, order.Messages); mine.Messages == 0 {
				return nil
			}
		}
		mine.Window = max(1, c.count(i, order.Window))
		return it.Send(ctx, mine)
	})
}

// settle says for each crew how many of its messages have arrived.
func (c *company) settle(arrivals []uint64) {
	for i, it := range c.crews {
		it.Settle(arrivals[i])
	}
}

// Progress returns the sums of all crews.
func (c *company) Progress() (whole Progress) {
	for _, it := range c.crews {
		whole.merge(it.Progress())
	}
	return whole
}

// Reconcile implements crew.
func (c *company) Reconcile(ctx context.Context, sent []uint32) (whole Outcome, err error) {
	outcomes := make([]Outcome, len(c.crews))
	err = c.each(func(i int, it crew) (err error) {
		var mine []uint32
		if sent != nil {
			mine = sent[c.shares[i].From:c.shares[i].To]
		}
		outcomes[i], err = it.Reconcile(ctx, mine)
		return err
	})
	for _, o := range outcomes {
		whole.merge(o)
	}
	return whole, err
}

// Close implements crew.
func (c *company) Close() error {
	return c.each(func(_ int, it crew) error { return it.Close() })
}
