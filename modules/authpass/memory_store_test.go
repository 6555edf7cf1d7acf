package authpass

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

func TestMemoryStore(t *testing.T) {
	apptest.PassStore(t, func(*testing.T) app.PassStore { return NewMemoryStore() })
}

// A pass is good until the very moment at which it expires.
func TestMemoryStoreExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore()
		early, late := draw(t), draw(t)
		grant := grantFor(t, 1, 30*time.Second)
		put(t, store, early, grant)
		put(t, store, late, grant)
		time.Sleep(30*time.Second - 1)
		if _, err := store.Take(t.Context(), early); err != nil {
			t.Errorf("a nanosecond before it expires: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if _, err := store.Take(t.Context(), late); !errors.Is(err, app.ErrPassInvalid) {
			t.Errorf("when it expires: %v, want ErrPassInvalid", err)
		}
	})
}

func TestMemoryStoreForgetsExpiredPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore()
		// Not in the order of their expiry: a pass put back keeps its first one.
		for i := range 100 {
			put(t, store, draw(t), grantFor(t, 1, time.Duration((i*37)%100+1)*time.Second))
		}
		time.Sleep(50 * time.Second)
		put(t, store, draw(t), grantFor(t, 1, time.Hour))
		if got := len(store.passes); got != 51 || len(store.expires) != got {
			t.Errorf("%d passes and %d expiries are kept, want 51 of each", got, len(store.expires))
		}
		time.Sleep(50 * time.Second)
		put(t, store, draw(t), grantFor(t, 1, time.Hour))
		if got := len(store.passes); got != 2 {
			t.Errorf("%d passes are kept, want 2", got)
		}
	})
}

func TestMemoryStoreIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore()
		store.capacity = 10
		passes := make([]domain.ConnectionPass, 10)
		for i := range passes {
			passes[i] = draw(t)
			put(t, store, passes[i], grantFor(t, 1, time.Minute))
		}
		if err := store.Put(t.Context(), draw(t), grantFor(t, 1, time.Minute)); !errors.Is(err, app.ErrPassStoreUnavailable) {
			t.Fatalf("Put into a full store: %v, want ErrPassStoreUnavailable", err)
		}
		// The same pass again needs no place.
		put(t, store, passes[0], grantFor(t, 2, time.Minute))
		if _, err := store.Take(t.Context(), passes[1]); err != nil {
			t.Fatalf("Take from a full store: %v", err)
		}
		put(t, store, draw(t), grantFor(t, 1, time.Minute))
		time.Sleep(time.Minute)
		put(t, store, draw(t), grantFor(t, 1, time.Minute))
		if len(store.passes) != 1 {
			t.Errorf("%d passes are kept, want 1", len(store.passes))
		}
	})
}

func draw(t *testing.T) domain.ConnectionPass {
	t.Helper()
	pass, err := domain.NewConnectionPass(32)
	if err != nil {
		t.Fatal(err)
	}
	return pass
}

func grantFor(t *testing.T, id int64, lifetime time.Duration) app.PassGrant {
	t.Helper()
	user, err := domain.NewUserID(id)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return app.PassGrant{
		Grant:         app.Grant{User: user, TokenExpiresAt: now.Add(time.Hour)},
		PassExpiresAt: now.Add(lifetime),
	}
}

func put(t *testing.T, store app.PassStore, pass domain.ConnectionPass, grant app.PassGrant) {
	t.Helper()
	if err := store.Put(t.Context(), pass, grant); err != nil {
		t.Fatalf("Put: %v", err)
	}
}
