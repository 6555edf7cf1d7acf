// Package authpass is the part of the gateway that knows who may connect: it checks
// the JSON Web Tokens of the authentication service and stores the one-time passes
// that they are exchanged for, in this process or in Redis.
package authpass
