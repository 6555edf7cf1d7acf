package domain

// Fault says what is wrong with one member of a client's message, in the words
// of the wire contract ("Data consistency error."). The zero value is no fault.
type Fault struct {
	// Type names the rule that was broken, e.g. "missing" or "string_too_long".
	Type string `json:"type"`
	// Loc is the path of the member, outermost first.
	Loc []string `json:"loc"`
	// Msg is a sentence for people. It never quotes what the client sent.
	Msg string `json:"msg"`
}

// Error makes a Fault usable as an error.
func (f *Fault) Error() string { return f.Msg }

// The rules that a member can break. The names are those of the validation
// library of the Python original, because version-1 clients may switch on them.
const (
	FaultMissing       = "missing"
	FaultStringType    = "string_type"
	FaultTooShort      = "string_too_short"
	FaultTooLong       = "string_too_long"
	FaultIntType       = "int_type"
	FaultIntFromFloat  = "int_from_float"
	FaultNotPositive   = "greater_than_equal"
	FaultIntOutOfRange = "less_than_equal"
)
