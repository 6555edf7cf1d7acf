package authpass

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/app/apptest"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass/redistest"
)

// promise is what app.PassStore says a call may take; the rest is for a busy machine.
const promise = time.Second + 500*time.Millisecond

func openRedis(t *testing.T, url string, log *zap.Logger) *RedisStore {
	t.Helper()
	store, err := NewRedisStore(url, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Start(t.Context()); err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := store.Stop(context.Background()); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return store
}

func TestRedisStore(t *testing.T) {
	url := redistest.URL(t)
	apptest.PassStore(t, func(t *testing.T) app.PassStore { return openRedis(t, url, zap.NewNop()) })
}

// What lies in Redis is what other instances and ADR 3 count on: no pass, a digest, a
// time to live.
func TestRedisStoreEntry(t *testing.T) {
	url := redistest.URL(t)
	store := openRedis(t, url, zap.NewNop())
	options, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	plain := redis.NewClient(options)
	defer func() { _ = plain.Close() }()

	pass := draw(t)
	grant := grantFor(t, 1<<53+1, 30*time.Second)
	put(t, store, pass, grant)
	sum := pass.Digest()
	key := "connection_pass:" + hex.EncodeToString(sum[:])
	value, err := plain.Get(t.Context(), key).Result()
	if err != nil {
		t.Fatalf("read the entry: %v", err)
	}
	if strings.Contains(value, pass.Reveal()) || !strings.Contains(value, `"user_id":9007199254740993`) {
		t.Errorf("the entry is %s", value)
	}
	ttl, err := plain.PTTL(t.Context(), key).Result()
	if err != nil || ttl <= 0 || ttl > 30*time.Second {
		t.Errorf("time to live %s, %v; want up to 30s", ttl, err)
	}
	for _, garbage := range []string{"", "x", "[]", `{"user_id":0}`, `{"user_id":1.5}`} {
		if err := plain.Set(t.Context(), key, garbage, time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Take(t.Context(), pass); !errors.Is(err, app.ErrPassInvalid) {
			t.Errorf("an entry %q: %v, want ErrPassInvalid", garbage, err)
		}
	}
}

// Two instances share one Redis: what one puts the other takes, and once only.
func TestRedisStoreIsShared(t *testing.T) {
	url := redistest.URL(t)
	one, other := openRedis(t, url, zap.NewNop()), openRedis(t, url, zap.NewNop())
	pass, grant := draw(t), grantFor(t, 5, time.Minute)
	put(t, one, pass, grant)
	if got, err := other.Take(t.Context(), pass); err != nil || got.User != grant.User {
		t.Fatalf("Take on the other instance: %+v, %v", got, err)
	}
	if _, err := one.Take(t.Context(), pass); !errors.Is(err, app.ErrPassInvalid) {
		t.Errorf("Take on the first instance after that: %v, want ErrPassInvalid", err)
	}
}

// mustBeUnavailable makes each call once and holds it to its time.
func mustBeUnavailable(t *testing.T, store *RedisStore) {
	t.Helper()
	pass, grant := draw(t), grantFor(t, 1, time.Minute)
	for name, call := range map[string]func() error{
		"Put":   func() error { return store.Put(t.Context(), pass, grant) },
		"Take":  func() error { _, err := store.Take(t.Context(), pass); return err },
		"Check": func() error { return store.Check(t.Context()) },
	} {
		began := time.Now()
		err := call()
		if !errors.Is(err, app.ErrPassStoreUnavailable) {
			t.Errorf("%s: %v, want ErrPassStoreUnavailable", name, err)
		} else if strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%s: the error names the server: %v", name, err)
		}
		if took := time.Since(began); took > promise {
			t.Errorf("%s took %s", name, took)
		}
	}
	if err := store.Available(); !errors.Is(err, app.ErrPassStoreUnavailable) {
		t.Errorf("Available: %v, want ErrPassStoreUnavailable", err)
	}
}

// awaitAvailable waits until the monitor has found out; nobody else asks.
func awaitAvailable(t *testing.T, store *RedisStore, want bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for (store.Available() == nil) != want {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("Available() is %v after 10 s, want available: %t", store.Available(), want)
		}
	}
}

func TestRedisStoreAway(t *testing.T) {
	server := redistest.Start(t)
	core, logs := observer.New(zap.InfoLevel)
	store := openRedis(t, server.URL(), zap.New(core))
	if err := store.Available(); err != nil {
		t.Fatalf("Available after Start: %v", err)
	}
	for range 2 {
		server.Kill()
		awaitAvailable(t, store, false)
		mustBeUnavailable(t, store)
		server.Restart()
		awaitAvailable(t, store, true)
		pass, grant := draw(t), grantFor(t, 1, time.Minute)
		put(t, store, pass, grant)
		if _, err := store.Take(t.Context(), pass); err != nil {
			t.Errorf("Take after the restart: %v", err)
		}
	}
	if n := logs.FilterMessage("the pass store is unavailable").Len(); n != 2 {
		t.Errorf("two outages were logged %d times", n)
	}
}

func TestRedisStorePaused(t *testing.T) {
	server := redistest.Start(t)
	store := openRedis(t, server.URL(), zap.NewNop())
	pass, grant := draw(t), grantFor(t, 1, time.Minute)
	put(t, store, pass, grant)
	server.Pause()
	mustBeUnavailable(t, store)
	// More callers than connections: each must still get its answer in time.
	results := make(chan error, 100)
	began := time.Now()
	for range cap(results) {
		go func() { results <- store.Put(t.Context(), pass, grant) }()
	}
	for range cap(results) {
		if err := <-results; !errors.Is(err, app.ErrPassStoreUnavailable) {
			t.Errorf("Put: %v, want ErrPassStoreUnavailable", err)
		}
	}
	if took := time.Since(began); took > promise {
		t.Errorf("the last of %d calls took %s", cap(results), took)
	}
	server.Resume()
	awaitAvailable(t, store, true)
	other := draw(t)
	put(t, store, other, grant)
	if _, err := store.Take(t.Context(), other); err != nil {
		t.Errorf("Take after that: %v", err)
	}
}

func TestRedisStoreStartsBeforeRedis(t *testing.T) {
	server := redistest.Start(t)
	server.Stop()
	began := time.Now()
	store := openRedis(t, server.URL(), zap.NewNop())
	if took := time.Since(began); took > promise {
		t.Errorf("Start took %s", took)
	}
	mustBeUnavailable(t, store)
	server.Restart()
	awaitAvailable(t, store, true)
}

// A caller that leaves while Redis does not answer is let go at once, and says nothing
// about Redis.
func TestRedisStoreCallerLeaves(t *testing.T) {
	server := redistest.Start(t)
	store, err := NewRedisStore(server.URL(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Stop(context.Background()) }()
	if err := store.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := store.Take(ctx, draw(t)); !errors.Is(err, app.ErrPassStoreUnavailable) {
		t.Errorf("Take: %v, want ErrPassStoreUnavailable", err)
	}
	if err := store.Available(); err != nil {
		t.Errorf("Available: %v", err)
	}
}

func TestRedisStorePassword(t *testing.T) {
	server := redistest.Start(t)
	options, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	plain := redis.NewClient(options)
	defer func() { _ = plain.Close() }()
	if err := plain.ConfigSet(t.Context(), "requirepass", "sesame-open").Err(); err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]error{
		":sesame-open@": nil, ":sesame-shut@": app.ErrPassStoreUnavailable, "": app.ErrPassStoreUnavailable,
	} {
		core, logs := observer.New(zap.DebugLevel)
		store := openRedis(t, strings.Replace(server.URL(), "redis://", "redis://"+password, 1), zap.New(core))
		if err := store.Available(); !errors.Is(err, want) {
			t.Errorf("password %q: Available: %v, want %v", password, err, want)
		}
		for _, entry := range logs.All() {
			for key, value := range entry.ContextMap() {
				if text, ok := value.(string); ok && strings.Contains(text, "sesame") {
					t.Errorf("%q logs the password in %s: %s", entry.Message, key, text)
				}
			}
		}
	}
}

// Nothing answers, not even with a refusal.
func TestRedisStoreMute(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	store := openRedis(t, "redis://"+listener.Addr().String(), zap.NewNop())
	mustBeUnavailable(t, store)
}

func TestNewRedisStoreURL(t *testing.T) {
	for _, url := range []string{"redis://localhost", "rediss://user:secret@cache.example.com:6380/3", "unix:///run/redis.sock"} {
		store, err := NewRedisStore(url, zap.NewNop())
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if wantTLS := strings.HasPrefix(url, "rediss:"); (store.client.Options().TLSConfig != nil) != wantTLS {
			t.Errorf("%s: TLS is %t", url, !wantTLS)
		}
		if err := store.Available(); !errors.Is(err, app.ErrPassStoreUnavailable) {
			t.Errorf("%s: Available before Start: %v, want ErrPassStoreUnavailable", url, err)
		}
		if err := store.Stop(t.Context()); err != nil {
			t.Errorf("%s: Stop before Start: %v", url, err)
		}
	}
	for _, url := range []string{"", "http://secret@x", "redis://:sec/ret@host", "redis://localhost/secret", "redis://u:secret%@h"} {
		_, err := NewRedisStore(url, zap.NewNop())
		if err == nil || strings.Contains(err.Error(), "sec") {
			t.Errorf("%q: the error is %v, want one that says nothing of the URL", url, err)
		}
	}
}

func TestModule(t *testing.T) {
	for name, url := range map[string]string{"memory": "", "redis": redistest.URL(t)} {
		t.Run(name, func(t *testing.T) {
			var got struct {
				fx.In
				Verifier app.TokenVerifier
				Store    app.PassStore
				Checks   []app.Check `group:"checks"`
			}
			running := fxtest.New(t, fx.NopLogger, Module,
				fx.Supply(Config{Token: TokenConfig{Algorithm: "HS256", Key: "secret"}, RedisURL: url}, zap.NewNop()),
				fx.Populate(&got))
			running.RequireStart()
			defer running.RequireStop()
			if len(got.Checks) != 1 || got.Checks[0].Name != "pass_store" {
				t.Fatalf("the checks are %v", got.Checks)
			}
			if err := got.Checks[0].Probe(t.Context()); err != nil {
				t.Errorf("the check: %v", err)
			}
			pass, grant := draw(t), grantFor(t, 3, time.Minute)
			put(t, got.Store, pass, grant)
			if _, err := got.Store.Take(t.Context(), pass); err != nil {
				t.Errorf("Take: %v", err)
			}
			if _, err := got.Verifier.Verify("no token"); !errors.Is(err, app.ErrUnauthenticated) {
				t.Errorf("Verify: %v", err)
			}
		})
	}
}

func TestModuleRefusesConfiguration(t *testing.T) {
	for name, cfg := range map[string]Config{
		"token": {Token: TokenConfig{Algorithm: "none"}},
		"redis": {Token: TokenConfig{Algorithm: "HS256", Key: "secret"}, RedisURL: "http://localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			err := fx.New(fx.NopLogger, Module, fx.Supply(cfg, zap.NewNop()), fx.Invoke(func(app.TokenVerifier, app.PassStore) {})).Err()
			if err == nil {
				t.Error("it was taken")
			}
		})
	}
}
