package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/fx"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
)

// startTimeout bounds the start. It waits for no broker and no Redis, so it is short.
const startTimeout = 15 * time.Second

// Exit codes of the program.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// serve runs the service until a signal ends it and returns the exit code: 0 where
// the shutdown was complete in time.
func serve() int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)

	cfg, err := config.Load()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	log := newLogger(cfg.Log)
	defer func() { _ = log.Sync() }()
	if cfg.Demo {
		printDemoBanner(os.Stderr, cfg)
		log.Warn("demo mode: broker, passes and messages live in this process, the key is random; not for production")
	}

	running := fx.New(service(cfg, log))
	startCtx, cancelStart := context.WithTimeout(context.Background(), startTimeout)
	defer cancelStart()
	started := make(chan error, 1)
	go func() { started <- running.Start(startCtx) }()
	select {
	case err = <-started:
	case received := <-signals:
		// A start waits for nobody for long. It is finished, so that the shutdown is the
		// same as any other.
		log.Info("signal during the start; shutting down after it", zap.Stringer("signal", received))
		select {
		case err = <-started:
			if err == nil {
				return stop(running, cfg, log, signals)
			}
		case received = <-signals:
			log.Error("a second signal ends the process at once", zap.Stringer("signal", received))
			return exitFailed
		}
	}
	if err != nil {
		log.Error("the service could not start", zap.Error(err))
		return exitFailed
	}
	log.Info("started", zap.String("version", version()), zap.String("http_addr", cfg.HTTP.Addr), zap.Bool("demo", cfg.Demo))

	received, failed := awaitEnd(signals, running.Wait())
	if failed {
		log.Error("a part of the service has failed; shutting down")
		_ = stop(running, cfg, log, signals)
		return exitFailed
	}
	log.Info("shutting down", zap.Stringer("signal", received), zap.Duration("timeout", cfg.Shutdown.Total))
	return stop(running, cfg, log, signals)
}

// awaitEnd waits for a signal, or for a part of the service that has asked for the end
// with an exit code other than 0. fx listens to the signals too, with the code 0: then
// the signal is, or will be in a moment, in signals as well.
func awaitEnd(signals <-chan os.Signal, ends <-chan fx.ShutdownSignal) (received os.Signal, failed bool) {
	select {
	case received = <-signals:
	case end := <-ends:
		if end.ExitCode != 0 {
			return nil, true
		}
		received = <-signals
	}
	return received, false
}

// stop shuts the service down. fx would swallow a second signal while it stops, so
// signals are handled here: the second one ends the process at once.
func stop(running *fx.App, cfg config.Config, log *zap.Logger, signals <-chan os.Signal) int {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Shutdown.Total)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- running.Stop(ctx) }()
	select {
	case err := <-stopped:
		if err != nil {
			log.Error("the shutdown is not complete", zap.Error(err))
			return exitFailed
		}
		log.Info("stopped")
		return exitOK
	case <-ctx.Done():
		log.Error("the shutdown took too long", zap.Duration("timeout", cfg.Shutdown.Total))
		return exitFailed
	case received := <-signals:
		log.Error("a second signal ends the process at once", zap.Stringer("signal", received))
		return exitFailed
	}
}

// newLogger returns the logger of the process: on stderr, with sampling, so that a
// fault that happens a thousand times a second is not logged a thousand times.
func newLogger(cfg config.Log) *zap.Logger {
	encoding, encoder := "json", zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder.EncodeDuration = zapcore.StringDurationEncoder
	if cfg.Console {
		encoding = "console"
		encoder.EncodeLevel = zapcore.CapitalLevelEncoder
	}
	log, err := zap.Config{
		Level:             zap.NewAtomicLevelAt(cfg.Level),
		Encoding:          encoding,
		EncoderConfig:     encoder,
		OutputPaths:       []string{"stderr"},
		ErrorOutputPaths:  []string{"stderr"},
		DisableStacktrace: true,
		DisableCaller:     true,
	}.Build(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return sampled(core)
	}))
	if err != nil {
		// The configuration above is constant but for the checked level and format.
		panic(fmt.Sprintf("build the logger: %v", err))
	}
	return log
}

// sampled keeps the first 50 of equal warnings and errors a second and each 1000th
// after that. Lines of lower levels are kept: an access log with holes is of no use.
func sampled(core zapcore.Core) zapcore.Core {
	return zapcore.NewTee(
		&band{core, zapcore.DebugLevel, zapcore.InfoLevel},
		&band{zapcore.NewSamplerWithOptions(core, time.Second, 50, 1000), zapcore.WarnLevel, zapcore.FatalLevel},
	)
}

// band is a core for the levels from low to high.
type band struct {
	zapcore.Core
	low, high zapcore.Level
}

// Enabled implements zapcore.LevelEnabler.
func (b *band) Enabled(level zapcore.Level) bool {
	return level >= b.low && level <= b.high && b.Core.Enabled(level)
}

// With implements zapcore.Core.
func (b *band) With(fields []zapcore.Field) zapcore.Core {
	return &band{b.Core.With(fields), b.low, b.high}
}

// Check implements zapcore.Core.
func (b *band) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !b.Enabled(entry.Level) {
		return checked
	}
	return b.Core.Check(entry, checked)
}
