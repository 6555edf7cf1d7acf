package apptest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// PassStore holds a store to the contract of app.PassStore. open returns a store that
// can be used, and cleans it up when its test ends; it may return the same passes
// again, so the suite uses passes of its own only.
func PassStore(t *testing.T, open func(t *testing.T) app.PassStore) {
	for _, clause := range []struct {
		name string
		hold func(t *testing.T, store app.PassStore)
	}{
		{"a pass is taken once, with its grant", passTakenOnce},
		{"one of many takers gets the pass", passRaced},
		{"an unknown pass is not valid", passUnknown},
		{"an expired pass is not valid", passExpired},
		{"a pass that is put expired is not valid", passPutExpired},
		{"a pass can be put back and taken again", passPutBack},
		{"the last grant put for a pass counts", passPutTwice},
		{"passes do not get in each other's way", passesApart},
		{"a call under an ended context fails and spends nothing", passContextEnded},
		{"a store that works says so", passStoreAvailable},
	} {
		t.Run(clause.name, func(t *testing.T) { clause.hold(t, open(t)) })
	}
}

func passTakenOnce(t *testing.T, store app.PassStore) {
	for _, id := range []int64{1, 42, 1<<53 + 1, 1<<63 - 1} {
		pass, grant := newPass(t), newPassGrant(t, id, time.Minute)
		mustPut(t, store, pass, grant)
		mustTake(t, store, pass, grant)
		mustBeInvalid(t, store, pass)
	}
}

func passRaced(t *testing.T, store app.PassStore) {
	const takers = 50
	pass, grant := newPass(t), newPassGrant(t, 7, time.Minute)
	mustPut(t, store, pass, grant)
	var taking sync.WaitGroup
	errs := make([]error, takers)
	for i := range takers {
		taking.Go(func() {
			_, errs[i] = store.Take(t.Context(), pass)
		})
	}
	taking.Wait()
	winners := 0
	for _, err := range errs {
		switch {
		case err == nil:
			winners++
		case !errors.Is(err, app.ErrPassInvalid):
			t.Errorf("a taker got %v, want ErrPassInvalid", err)
		}
	}
	if winners != 1 {
		t.Errorf("%d of %d takers got the pass, want one", winners, takers)
	}
}

func passUnknown(t *testing.T, store app.PassStore) {
	mustBeInvalid(t, store, newPass(t))
}

func passExpired(t *testing.T, store app.PassStore) {
	pass, grant := newPass(t), newPassGrant(t, 7, 60*time.Millisecond)
	mustPut(t, store, pass, grant)
	// A store may keep the time of another machine: give it the millisecond by which
	// it may round up, and some more.
	expired := time.NewTimer(time.Until(grant.PassExpiresAt.Add(20 * time.Millisecond)))
	defer expired.Stop()
	<-expired.C
	mustBeInvalid(t, store, pass)
}

func passPutExpired(t *testing.T, store app.PassStore) {
	pass := newPass(t)
	for _, age := range []time.Duration{0, time.Millisecond, time.Hour} {
		mustPut(t, store, pass, newPassGrant(t, 7, -age))
		mustBeInvalid(t, store, pass)
	}
}

func passPutBack(t *testing.T, store app.PassStore) {
	pass, grant := newPass(t), newPassGrant(t, 7, time.Minute)
	mustPut(t, store, pass, grant)
	mustTake(t, store, pass, grant)
	mustPut(t, store, pass, grant)
	mustTake(t, store, pass, grant)
	mustBeInvalid(t, store, pass)
}

func passPutTwice(t *testing.T, store app.PassStore) {
	pass, grant := newPass(t), newPassGrant(t, 8, 2*time.Minute)
	mustPut(t, store, pass, newPassGrant(t, 7, time.Minute))
	mustPut(t, store, pass, grant)
	mustTake(t, store, pass, grant)
	mustBeInvalid(t, store, pass)
}

func passesApart(t *testing.T, store app.PassStore) {
	passes := make(map[domain.ConnectionPass]app.PassGrant)
	for id := range int64(100) {
		pass, grant := newPass(t), newPassGrant(t, id+1, time.Minute)
		passes[pass] = grant
		mustPut(t, store, pass, grant)
	}
	for pass, grant := range passes {
		mustTake(t, store, pass, grant)
	}
}

func passContextEnded(t *testing.T, store app.PassStore) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	pass, grant := newPass(t), newPassGrant(t, 7, time.Minute)
	if err := store.Put(ended, pass, grant); !errors.Is(err, app.ErrPassStoreUnavailable) {
		t.Errorf("Put under an ended context: %v, want ErrPassStoreUnavailable", err)
	}
	mustPut(t, store, pass, grant)
	if _, err := store.Take(ended, pass); !errors.Is(err, app.ErrPassStoreUnavailable) {
		t.Errorf("Take under an ended context: %v, want ErrPassStoreUnavailable", err)
	}
	// A caller that gives up says nothing about the store.
	if err := store.Available(); err != nil {
		t.Errorf("Available after that: %v", err)
	}
	mustTake(t, store, pass, grant)
}

func passStoreAvailable(t *testing.T, store app.PassStore) {
	if err := store.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	if err := store.Available(); err != nil {
		t.Errorf("Available: %v", err)
	}
}

func newPass(t *testing.T) domain.ConnectionPass {
	t.Helper()
	pass, err := domain.NewConnectionPass(32)
	if err != nil {
		t.Fatalf("draw a pass: %v", err)
	}
	return pass
}

// newPassGrant returns a grant for a pass that is good for lifetime. Its moments are
// whole milliseconds, which is what every store must keep.
func newPassGrant(t *testing.T, id int64, lifetime time.Duration) app.PassGrant {
	t.Helper()
	user, err := domain.NewUserID(id)
	if err != nil {
		t.Fatalf("user id %d: %v", id, err)
	}
	now := time.Now().Truncate(time.Millisecond)
	return app.PassGrant{
		Grant:         app.Grant{User: user, TokenExpiresAt: now.Add(time.Hour)},
		PassExpiresAt: now.Add(lifetime),
	}
}

func mustPut(t *testing.T, store app.PassStore, pass domain.ConnectionPass, grant app.PassGrant) {
	t.Helper()
	if err := store.Put(t.Context(), pass, grant); err != nil {
		t.Fatalf("Put: %v", err)
	}
}

func mustTake(t *testing.T, store app.PassStore, pass domain.ConnectionPass, want app.PassGrant) {
	t.Helper()
	got, err := store.Take(t.Context(), pass)
	if err != nil {
		t.Fatalf("Take: %v", err)
	}
	if got.User != want.User || !got.TokenExpiresAt.Equal(want.TokenExpiresAt) || !got.PassExpiresAt.Equal(want.PassExpiresAt) {
		t.Fatalf("Take returned %+v, want %+v", got, want)
	}
}

func mustBeInvalid(t *testing.T, store app.PassStore, pass domain.ConnectionPass) {
	t.Helper()
	if got, err := store.Take(t.Context(), pass); !errors.Is(err, app.ErrPassInvalid) {
		t.Fatalf("Take returned %+v and %v, want ErrPassInvalid", got, err)
	}
}
