package authpass

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// oneEntry answers a client's commands in the place of Redis, which has one entry.
type oneEntry struct {
	value    []byte
	lifetime time.Duration
}

// DialHook implements redis.Hook.
func (*oneEntry) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("there is no network here")
	}
}

// ProcessPipelineHook implements redis.Hook.
func (*oneEntry) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// ProcessHook implements redis.Hook.
func (e *oneEntry) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, command redis.Cmder) error {
		switch command := command.(type) {
		case *redis.StatusCmd: // SET key value PX milliseconds, or EX seconds
			args := command.Args()
			value, isText := args[2].([]byte)
			amount, isNumber := args[len(args)-1].(int64)
			unit, known := map[any]time.Duration{"px": time.Millisecond, "ex": time.Second}[args[len(args)-2]]
			if !isText || !isNumber || !known {
				return fmt.Errorf("an unexpected command: %v", args)
			}
			e.value, e.lifetime = value, time.Duration(amount)*unit
			command.SetVal("OK")
		case *redis.StringCmd: // GETDEL key
			command.SetVal(string(e.value))
		}
		return nil
	}
}

// FuzzEntry: what Redis hands out is a grant for a user that its entry names, or no pass;
// and what is put is taken as it was, to the millisecond.
func FuzzEntry(f *testing.F) {
	for _, value := range []string{
		`{"user_id":1,"token_exp":1767323045678,"pass_exp":1767323075678}`, `{"user_id":9223372036854775807}`,
		`{"user_id":0}`, `{"user_id":-1}`, `{"user_id":1.0}`, `{"user_id":1e2}`, `{"user_id":9223372036854775808}`, `{"user_id":"1"}`,
		`{"user_id":1,"user_id":2}`, `{"USER_ID":3}`, `{"user_id":1,"token_exp":null}`, `{"user_id":1,"pass_exp":[]}`,
		"", "null", "[]", "{}", "{} x", "\xff", `{"user_id":1}{"user_id":2}`,
	} {
		f.Add([]byte(value), int64(1<<53+1), int64(1767323045678), int64(30_000))
	}
	store, err := NewRedisStore("redis://localhost", zap.NewNop())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = store.Stop(context.Background()) })
	entry := new(oneEntry)
	store.client.AddHook(entry)
	pass, err := domain.NewConnectionPass(32)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, value []byte, id, token, lifetime int64) {
		entry.value = value
		grant, err := store.Take(t.Context(), pass)
		switch {
		case err != nil:
			if !errors.Is(err, app.ErrPassInvalid) || grant != (app.PassGrant{}) {
				t.Errorf("%q: %+v, %v", value, grant, err)
			}
		default:
			if again, err := domain.NewUserID(grant.User.Int64()); err != nil || again != grant.User {
				t.Errorf("%q is for the user %v", value, grant.User)
			}
			var members struct {
				UserID json.Number `json:"user_id"`
			}
			if err := json.Unmarshal(value, &members); err != nil || members.UserID.String() != grant.User.String() {
				t.Errorf("%q is for the user %v, not %v, %v", value, grant.User, members.UserID, err)
			}
		}

		user, err := domain.NewUserID(id)
		const year, longest = 365 * 24 * 60 * 60 * 1000, 24 * 60 * 60 * 1000 // milliseconds
		if err != nil || token < -10_000*year || token > 10_000*year || lifetime < 1_000 || lifetime > longest {
			return // not what IssuePass puts
		}
		now := time.Now()
		want := app.PassGrant{
			Grant:         app.Grant{User: user, TokenExpiresAt: time.UnixMilli(token)},
			PassExpiresAt: time.UnixMilli(now.UnixMilli() + lifetime),
		}
		if err := store.Put(t.Context(), pass, want); err != nil {
			t.Fatal(err)
		}
		if entry.lifetime <= 0 || entry.lifetime > time.Duration(lifetime)*time.Millisecond {
			t.Errorf("a pass for %d ms is kept for %s", lifetime, entry.lifetime)
		}
		if got, err := store.Take(t.Context(), pass); err != nil || got != want {
			t.Errorf("put %+v, took %+v, %v", want, got, err)
		}
	})
}
