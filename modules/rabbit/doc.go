// Package rabbit meets RabbitMQ (AMQP 0-9-1): Publisher hands over what clients say
// under publisher confirms, Inboxes gives each connected user an ephemeral queue, or a
// binding of the instance's one queue.
//
// Each of the two keeps one connection of its own, since RabbitMQ holds a blocked
// publisher up by reading nothing more from its connection, acks of a consumer
// included. A connection and all that was made on it is an epoch: when it ends, what
// it held is settled, and everything is made anew on the next one under fresh names.
package rabbit
