package wire

import (
	"fmt"
	"strconv"
)

// Media types of the v1 HTTP API.
const (
	JSON     = "application/json"
	Protobuf = "application/x-protobuf"
)

// Message is a generated mesos-go message.
type Message interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// UnmarshalProto decodes a protobuf body. It turns the panics of the generated
// code (crafted lengths) into errors, so that no client can end the process.
func UnmarshalProto(data []byte, msg Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decode protobuf: generated code panicked: %v", p)
		}
	}()
	return msg.Unmarshal(data)
}

// Marshal encodes a message in the given media type.
func Marshal(mediaType string, msg Message) ([]byte, error) {
	if mediaType == Protobuf {
		b, err := msg.Marshal()
		if err != nil {
			return nil, fmt.Errorf("encode protobuf: %w", err)
		}
		return b, nil
	}
	return MarshalJSON(msg), nil
}

// AppendRecord appends one RecordIO record: the decimal length, a newline, the
// bytes, and nothing after them.
func AppendRecord(dst, record []byte) []byte {
	dst = strconv.AppendInt(dst, int64(len(record)), 10)
	dst = append(dst, '\n')
	return append(dst, record...)
}
