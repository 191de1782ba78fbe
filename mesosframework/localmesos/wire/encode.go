package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"reflect"
	"sort"
	"strconv"
)

// MarshalJSON encodes a generated message (or a pointer to one) as Mesos does:
// only the fields that are set, in the order of their numbers, floats with a
// decimal point, unsigned integers as numbers, bytes in base64.
func MarshalJSON(msg any) []byte {
	var b bytes.Buffer
	v := reflect.ValueOf(msg)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	encodeMessage(&b, v)
	return b.Bytes()
}

func encodeMessage(b *bytes.Buffer, v reflect.Value) {
	b.WriteByte('{')
	first := true
	for _, f := range schemaOf(v.Type()).fields {
		fv := v.Field(f.index)
		if !isSet(f, fv) {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		encodeString(b, f.name)
		b.WriteByte(':')
		encodeField(b, f, fv)
	}
	b.WriteByte('}')
}

// isSet tells whether a field would be on the wire: pointers, slices and maps
// when not nil, required values always, optional values when not zero.
func isSet(f field, v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return !v.IsNil()
	default:
		return f.required || !v.IsZero()
	}
}

func encodeField(b *bytes.Buffer, f field, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Map:
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		b.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				b.WriteByte(',')
			}
			encodeString(b, k.String())
			b.WriteByte(':')
			encodeValue(b, f, v.MapIndex(k))
		}
		b.WriteByte('}')
	case f.repeated:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			encodeValue(b, f, v.Index(i))
		}
		b.WriteByte(']')
	default:
		encodeValue(b, f, v)
	}
}

func encodeValue(b *bytes.Buffer, f field, v reflect.Value) {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.Struct:
		encodeMessage(b, v)
	case reflect.String:
		encodeString(b, v.String())
	case reflect.Bool:
		b.WriteString(strconv.FormatBool(v.Bool()))
	case reflect.Float32, reflect.Float64:
		b.WriteString(Float(v.Float()))
	case reflect.Int, reflect.Int32, reflect.Int64:
		if f.enum != "" {
			encodeString(b, enumName(f.enum, int32(v.Int())))
			return
		}
		b.WriteString(strconv.FormatInt(v.Int(), 10))
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		b.WriteString(strconv.FormatUint(v.Uint(), 10))
	case reflect.Slice:
		encodeString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	default: // no message of Mesos has such a field
	}
}

// Float prints a float as JSON the way Mesos does: 4 is "4.0". What JSON
// cannot carry (NaN, infinities) becomes 0.
func Float(f float64) string {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "0.0"
	}
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if f == math.Trunc(f) && math.Abs(f) < 1e15 {
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return s
}

func encodeString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // cannot fail for a string
	b.Truncate(b.Len() - 1)
}
