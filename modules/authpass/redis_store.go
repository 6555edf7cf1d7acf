package authpass

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

const (
	// redisKeyPrefix goes before the digest of a pass, in hexadecimal.
	redisKeyPrefix = "connection_pass:"
	// redisStepTimeout bounds one step: a dial, a write, a read, the wait for a
	// connection of the pool.
	redisStepTimeout = 400 * time.Millisecond
	// redisCallTimeout bounds a call with all its steps; app.PassStore promises a second.
	redisCallTimeout = 900 * time.Millisecond
	// redisMonitorInterval is how often Redis is asked whether it is there.
	redisMonitorInterval = time.Second
)

var errNotAsked = errors.New("redis has not been asked yet")

// RedisStore is an app.PassStore in Redis (6.2 or newer), which all instances share.
// A pass is a key named by its digest that expires by itself, so that the clock of
// Redis decides for all instances.
type RedisStore struct {
	client *redis.Client
	log    *zap.Logger

	// down is why Redis can't be used as far as is known, or nil.
	down atomic.Pointer[unavailableError]

	cancel     context.CancelFunc // nil before Start
	monitoring sync.WaitGroup
}

// NewRedisStore returns a store for the Redis of a URL: redis://, rediss:// (TLS) or
// unix://, possibly with user, password and database. It does not connect. The error
// holds nothing of the URL, which may contain a password. The log of the go-redis
// library, of which a process has one, goes to log at debug level from now on.
func NewRedisStore(url string, log *zap.Logger) (*RedisStore, error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the URL of the pass store must be like redis://:password@host:6379/0")
	}
	redis.SetLogger(redisLogger{log})
	// A repeated GETDEL would answer "unknown" for the pass that the first one took.
	options.MaxRetries = -1
	options.DialerRetries = 1
	options.DialTimeout = redisStepTimeout
	options.ReadTimeout = redisStepTimeout
	options.WriteTimeout = redisStepTimeout
	options.PoolTimeout = redisStepTimeout
	options.ContextTimeoutEnabled = true
	// Passes are 100 bytes; the default buffers are 32 KiB each way.
	options.ReadBufferSize, options.WriteBufferSize = 4096, 4096
	options.PipelinePoolSize = -1
	options.DisableIdentity = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	s := &RedisStore{client: redis.NewClient(options), log: log}
	s.down.Store(unavailable("it has not been asked yet", errNotAsked))
	return s, nil
}

// Start asks Redis once, so that Available is worth something when Start returns, and
// then every second until Stop. That Redis does not answer is no error: the store
// waits for it.
func (s *RedisStore) Start(ctx context.Context) error {
	monitorCtx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	// An error is remembered and logged by Check.
	_ = s.Check(ctx)
	s.monitoring.Go(func() { s.monitor(monitorCtx) })
	return nil
}

// Stop ends the connections. Calls after it fail.
func (s *RedisStore) Stop(context.Context) error {
	if s.cancel != nil {
		s.cancel()
		s.monitoring.Wait()
	}
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close the connections to the pass store: %w", err)
	}
	return nil
}

func (s *RedisStore) monitor(ctx context.Context) {
	ticker := time.NewTicker(redisMonitorInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = s.Check(ctx)
		}
	}
}

// redisPass is the value of a key. The moments are in milliseconds since 1970.
type redisPass struct {
	UserID  int64 `json:"user_id"`
	Token   int64 `json:"token_exp"`
	Expires int64 `json:"pass_exp"`
}

func redisKey(pass domain.ConnectionPass) string {
	sum := pass.Digest()
	return redisKeyPrefix + hex.EncodeToString(sum[:])
}

// Put implements app.PassStore.
func (s *RedisStore) Put(ctx context.Context, pass domain.ConnectionPass, grant app.PassGrant) error {
	// Rounded up, since Redis takes whole milliseconds and refuses 0.
	lifetime := (time.Until(grant.PassExpiresAt) + time.Millisecond - 1).Truncate(time.Millisecond)
	if lifetime <= 0 {
		return nil
	}
	value, err := json.Marshal(redisPass{
		UserID:  grant.User.Int64(),
		Token:   grant.TokenExpiresAt.UnixMilli(),
		Expires: grant.PassExpiresAt.UnixMilli(),
	})
	if err != nil {
		return fmt.Errorf("encode a pass: %w", err)
	}
	return s.call(ctx, func(ctx context.Context) error {
		return s.client.Set(ctx, redisKey(pass), value, lifetime).Err()
	})
}

// Take implements app.PassStore.
func (s *RedisStore) Take(ctx context.Context, pass domain.ConnectionPass) (app.PassGrant, error) {
	var value []byte
	err := s.call(ctx, func(ctx context.Context) (err error) {
		value, err = s.client.GetDel(ctx, redisKey(pass)).Bytes()
		return err
	})
	if errors.Is(err, redis.Nil) {
		return app.PassGrant{}, app.ErrPassInvalid
	}
	if err != nil {
		return app.PassGrant{}, err
	}
	var stored redisPass
	if err := json.Unmarshal(value, &stored); err != nil {
		return app.PassGrant{}, fmt.Errorf("%w: its entry can't be read", app.ErrPassInvalid)
	}
	user, err := domain.NewUserID(stored.UserID)
	if err != nil {
		return app.PassGrant{}, fmt.Errorf("%w: its entry names no user", app.ErrPassInvalid)
	}
	return app.PassGrant{
		Grant:         app.Grant{User: user, TokenExpiresAt: time.UnixMilli(stored.Token)},
		PassExpiresAt: time.UnixMilli(stored.Expires),
	}, nil
}

// Available implements app.PassStore: it tells what the last call that reached Redis,
// or did not, has shown. That is a second old at most.
func (s *RedisStore) Available() error {
	if down := s.down.Load(); down != nil {
		return down
	}
	return nil
}

// Check implements app.PassStore.
func (s *RedisStore) Check(ctx context.Context) error {
	err := s.call(ctx, func(ctx context.Context) error { return s.client.Ping(ctx).Err() })
	var answer redis.Error
	var failure *unavailableError
	if errors.As(err, &answer) && errors.As(err, &failure) {
		// Redis is there but serves nobody: it is loading, or wants another password.
		s.mark(failure)
	}
	return err
}

// call runs one command within redisCallTimeout and learns from it whether Redis can
// be used. It returns nil, redis.Nil or an *unavailableError.
func (s *RedisStore) call(ctx context.Context, command func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return unavailable("the request has ended", err)
	}
	callCtx, cancel := context.WithTimeout(ctx, redisCallTimeout)
	defer cancel()
	err := command(callCtx)
	if err == nil || errors.Is(err, redis.Nil) {
		s.mark(nil)
		return err
	}
	failure := unavailable(redisReason(err), err)
	var answer redis.Error
	// The caller's own end says nothing of Redis, and one refused command (memory full,
	// a replica) does not say that it refuses others.
	if !ended(ctx) && !errors.As(err, &answer) {
		s.mark(failure)
	}
	return failure
}

// ended reports whether ctx is over. A connection whose deadline comes from ctx can
// fail a moment before ctx itself says so.
func ended(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(deadline)
}

// redisReason describes an error for people who must not learn addresses.
func redisReason(err error) string {
	var answer redis.Error
	var operation *net.OpError
	switch {
	case errors.As(err, &answer):
		return "Redis refused the command"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout):
		return "Redis did not answer in time"
	case errors.As(err, &operation) && operation.Op == "dial":
		return "Redis can't be reached"
	}
	return "the connection to Redis is broken"
}

// mark remembers what was learned, and logs it where it is news.
func (s *RedisStore) mark(failure *unavailableError) {
	before := s.down.Swap(failure)
	switch {
	case failure == nil && before != nil:
		s.log.Info("the pass store is available")
	case failure != nil && (before == nil || before.cause == errNotAsked):
		s.log.Warn("the pass store is unavailable", zap.String("reason", failure.reason), zap.NamedError("cause", failure.cause))
	}
}

// redisLogger sends the lines of the go-redis library to the log.
type redisLogger struct{ log *zap.Logger }

// Printf implements the logger of go-redis.
func (l redisLogger) Printf(_ context.Context, format string, args ...any) {
	if entry := l.log.Check(zap.DebugLevel, "go-redis"); entry != nil {
		entry.Write(zap.String("line", fmt.Sprintf(format, args...)))
	}
}
