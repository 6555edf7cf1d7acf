package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/wagslane/go-rabbitmq"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/demo"
)

// backendQueue is the queue that the messaging service reads.
const backendQueue = "database.primary"

// backend stands in for the messaging service until a signal ends it: it reads the
// database exchange's queue and answers over the websockets exchange.
func backend() int {
	cfg, err := config.Load("RABBITMQ_URL", "WEBSOCKETS_EXCHANGE_NAME", "DATABASE_EXCHANGE_NAME", "LOG_LEVEL", "LOG_FORMAT")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	if len(cfg.Rabbit.URLs) == 0 {
		fmt.Fprintln(os.Stderr, "RABBITMQ_URL is not set")
		return exitFailed
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	log := newLogger(cfg.Log)
	defer func() { _ = log.Sync() }()
	if err := answerMessages(ctx, cfg, log); err != nil {
		log.Error("the backend has ended", zap.Error(err))
		return exitFailed
	}
	return exitOK
}

func answerMessages(ctx context.Context, cfg config.Config, log *zap.Logger) error {
	quiet := rabbitmq.WithConnectionOptionsLogger(libraryLog{log.Named("rabbitmq").Sugar()})
	conn, err := dialPatiently(ctx, cfg.Rabbit.URLs, quiet, log)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	publisher, err := rabbitmq.NewPublisher(conn,
		rabbitmq.WithPublisherOptionsLogger(libraryLog{log.Named("rabbitmq").Sugar()}),
		rabbitmq.WithPublisherOptionsExchangeName(cfg.Rabbit.WebsocketsExchange),
		rabbitmq.WithPublisherOptionsExchangeKind("direct"),
		rabbitmq.WithPublisherOptionsExchangeDurable,
		rabbitmq.WithPublisherOptionsExchangeDeclare,
	)
	if err != nil {
		return fmt.Errorf("open the publisher: %w", err)
	}
	defer publisher.Close()
	consumer, err := rabbitmq.NewConsumer(conn, backendQueue,
		rabbitmq.WithConsumerOptionsLogger(libraryLog{log.Named("rabbitmq").Sugar()}),
		rabbitmq.WithConsumerOptionsQueueDurable,
		rabbitmq.WithConsumerOptionsExchangeName(cfg.Rabbit.DatabaseExchange),
		rabbitmq.WithConsumerOptionsExchangeKind("direct"),
		rabbitmq.WithConsumerOptionsExchangeDurable,
		rabbitmq.WithConsumerOptionsExchangeDeclare,
		rabbitmq.WithConsumerOptionsRoutingKey(""),
		rabbitmq.WithConsumerOptionsQOSPrefetch(64),
	)
	if err != nil {
		return fmt.Errorf("open the consumer: %w", err)
	}
	defer context.AfterFunc(ctx, consumer.Close)()

	messaging := demo.NewMessaging()
	log.Info("answering messages", zap.String("queue", backendQueue))
	return consumer.Run(func(delivery rabbitmq.Delivery) rabbitmq.Action {
		replies, err := messaging.Answer(delivery.Body, time.Now())
		if err != nil {
			log.Warn("a message could not be answered", zap.Error(err))
			return rabbitmq.NackDiscard
		}
		for _, reply := range replies {
			err := publisher.PublishWithContext(ctx, reply.Body, []string{reply.RoutingKey},
				rabbitmq.WithPublishOptionsExchange(cfg.Rabbit.WebsocketsExchange),
				rabbitmq.WithPublishOptionsContentType("application/json"),
				rabbitmq.WithPublishOptionsHeaders(traceContext(delivery.Headers)),
			)
			if err != nil {
				log.Warn("a reply could not be published", zap.Error(err))
				return rabbitmq.NackRequeue
			}
		}
		return rabbitmq.Ack
	})
}

// traceContext returns the W3C trace context among the headers of a message, so that a
// reply belongs to the trace of what it answers.
func traceContext(headers map[string]any) rabbitmq.Table {
	var carried rabbitmq.Table
	for _, name := range []string{"traceparent", "tracestate"} {
		if value, found := headers[name]; found {
			if carried == nil {
				carried = make(rabbitmq.Table, 2)
			}
			carried[name] = value
		}
	}
	return carried
}

// dialPatiently waits for the broker, so that the backend can be started before it.
func dialPatiently(ctx context.Context, urls []string, option func(*rabbitmq.ConnectionOptions), log *zap.Logger) (*rabbitmq.Conn, error) {
	const pause = time.Second
	for {
		conn, err := rabbitmq.NewClusterConn(rabbitmq.NewStaticResolver(urls, false), option)
		if err == nil {
			return conn, nil
		}
		log.Warn("the broker is away; trying again", zap.Error(err), zap.Duration("in", pause))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// libraryLog passes what go-rabbitmq has to say on, all but its chatter at debug.
type libraryLog struct{ *zap.SugaredLogger }

// Infof implements rabbitmq.Logger; what the library calls info is of no interest.
func (l libraryLog) Infof(format string, args ...any) { l.Debugf(format, args...) }

// Tracef implements rabbitmq.Logger.
func (l libraryLog) Tracef(format string, args ...any) { l.Debugf(format, args...) }
