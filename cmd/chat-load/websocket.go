package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// A WebSocket client of this program's own (RFC 6455), since many thousands of
// connections share its memory: at rest one has no buffer but that of its next read.

// Opcodes, RFC 6455 section 5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa
)

// Close codes of the client, RFC 6455 section 7.4.1.
const (
	closeNormal      = 1000
	closeNoStatus    = 1005
	closeAbnormal    = 1006
	maxServerMessage = 1 << 20 // bytes; greater ones end the connection
	maxControl       = 125     // RFC 6455 section 5.5
)

// errFrame is wrapped by what a server may not send.
var errFrame = errors.New("a frame that RFC 6455 forbids")

// frameHandler takes what came over a connection. The payload is only good during the
// call.
type frameHandler interface {
	message(payload []byte) error
	control(opcode byte, payload []byte) error
}

// frameReader cuts what a server sends into frames. The zero value is ready. It keeps
// no memory between frames.
type frameReader struct {
	partial   []byte // the start of a frame whose rest has not come
	fragments []byte // the message so far, while one comes in fragments
	within    bool   // between the first and the last fragment of a message
}

// feed takes the next bytes and hands the frames that they complete to h. It ends with
// h's error, or with one that wraps errFrame; the reader is of no use after one.
func (r *frameReader) feed(chunk []byte, h frameHandler) error {
	data := chunk
	if len(r.partial) > 0 {
		r.partial = append(r.partial, chunk...)
		data = r.partial
	}
	for {
		n, err := r.frame(data, h)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		data = data[n:]
	}
	switch {
	case len(data) == 0:
		r.partial = nil
	case len(r.partial) > 0 && len(data) == len(r.partial):
	default:
		r.partial = append([]byte(nil), data...)
	}
	return nil
}

// frame handles the first frame of data and returns its length, or 0 where it is not
// complete.
func (r *frameReader) frame(data []byte, h frameHandler) (int, error) {
	if len(data) < 2 {
		return 0, nil
	}
	final, opcode := data[0]&0x80 != 0, data[0]&0x0f
	if data[0]&0x70 != 0 {
		return 0, fmt.Errorf("%w: reserved bits are set", errFrame)
	}
	if data[1]&0x80 != 0 {
		return 0, fmt.Errorf("%w: a server's frame is masked", errFrame)
	}
	header, length := 2, uint64(data[1])
	switch {
	case length == 126:
		if header = 4; len(data) < header {
			return 0, nil
		}
		if length = uint64(binary.BigEndian.Uint16(data[2:])); length < 126 {
			return 0, fmt.Errorf("%w: a length takes more bytes than it needs", errFrame)
		}
	case length == 127:
		if header = 10; len(data) < header {
			return 0, nil
		}
		if length = binary.BigEndian.Uint64(data[2:]); length < 1<<16 {
			return 0, fmt.Errorf("%w: a length takes more bytes than it needs", errFrame)
		}
	}
	if length+uint64(len(r.fragments)) > maxServerMessage || length > maxServerMessage {
		return 0, fmt.Errorf("%w: a message over %d bytes", errFrame, maxServerMessage)
	}
	control := opcode >= opClose
	switch {
	case control && (!final || length > maxControl):
		return 0, fmt.Errorf("%w: a control frame in fragments or too long", errFrame)
	case opcode > opPong || !control && opcode > opBinary:
		return 0, fmt.Errorf("%w: opcode %#x", errFrame, opcode)
	case !control && r.within != (opcode == opContinuation):
		return 0, fmt.Errorf("%w: fragments out of place", errFrame)
	}
	end := header + int(length)
	if len(data) < end {
		return 0, nil
	}
	payload := data[header:end]
	switch {
	case control:
		return end, h.control(opcode, payload)
	case final && !r.within:
		return end, h.message(payload)
	}
	r.fragments = append(r.fragments, payload...)
	r.within = !final
	if !final {
		return end, nil
	}
	whole := r.fragments
	r.fragments = nil
	return end, h.message(whole)
}

// appendFrame appends a final frame from a client: masked, as section 5.3 demands, with
// a key that nobody can foresee.
func appendFrame(dst []byte, opcode byte, payload []byte) []byte {
	dst = append(dst, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, 0x80|byte(n))
	case n < 1<<16:
		dst = append(dst, 0x80|126)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	default:
		dst = append(dst, 0x80|127)
		dst = binary.BigEndian.AppendUint64(dst, uint64(n))
	}
	key := rand.Uint32()
	dst = binary.LittleEndian.AppendUint32(dst, key)
	start := len(dst)
	dst = append(dst, payload...)
	mask(dst[start:], key)
	return dst
}

// mask masks data in place with the key, whose lowest byte comes first.
func mask(data []byte, key uint32) {
	wide := uint64(key)<<32 | uint64(key)
	for len(data) >= 8 {
		binary.LittleEndian.PutUint64(data, binary.LittleEndian.Uint64(data)^wide)
		data = data[8:]
	}
	for i := range data {
		data[i] ^= byte(key >> (8 * (i & 3)))
	}
}

// closeCode returns the code of a close frame's payload.
func closeCode(payload []byte) int {
	if len(payload) < 2 {
		return closeNoStatus
	}
	return int(binary.BigEndian.Uint16(payload))
}
