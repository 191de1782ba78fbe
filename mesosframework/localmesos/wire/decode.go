package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// ErrNotJSON says that a body is no JSON at all, as opposed to JSON that does
// not fit the message.
var ErrNotJSON = errors.New("not JSON")

// UnmarshalJSON decodes a JSON body into a pointer to a generated message.
//
// An error that wraps ErrNotJSON carries the text of a syntax error; any other
// error carries the text that Mesos gives after "Failed to convert JSON into
// Call protobuf: ".
func UnmarshalJSON(data []byte, msg any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return &syntaxError{data: data, offset: dec.InputOffset()}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &syntaxError{data: data, offset: dec.InputOffset()}
	}
	obj, ok := tree.(map[string]any)
	if !ok {
		return errors.New("Expecting a JSON object") // Mesos's text
	}
	d := decoder{}
	if err := d.message(obj, reflect.ValueOf(msg).Elem(), ""); err != nil {
		return err
	}
	if len(d.missing) > 0 {
		return fmt.Errorf("Missing required fields: %s", strings.Join(d.missing, ", ")) // Mesos's text
	}
	return nil
}

type syntaxError struct {
	data   []byte
	offset int64
}

func (e *syntaxError) Unwrap() error { return ErrNotJSON }

// Error gives the line of the fault and the rest of that line.
func (e *syntaxError) Error() string {
	at := min(int(e.offset), len(e.data))
	line := 1 + bytes.Count(e.data[:at], []byte{'\n'})
	rest := e.data[at:]
	if i := bytes.IndexByte(rest, '\n'); i >= 0 {
		rest = rest[:i]
	}
	if len(rest) > 200 {
		rest = rest[:200]
	}
	if len(bytes.TrimSpace(rest)) == 0 || len(rest) == len(e.data) {
		rest = nil
	}
	return fmt.Sprintf("syntax error at line %d near: %s", line, rest)
}

type decoder struct {
	missing []string // paths of required fields that were absent
}

func (d *decoder) message(obj map[string]any, v reflect.Value, path string) error {
	s := schemaOf(v.Type())
	for _, f := range s.fields {
		raw, present := obj[f.name]
		if !present || raw == nil {
			if f.required {
				d.missing = append(d.missing, path+f.name)
			}
			continue
		}
		if err := d.field(f, raw, v.Field(f.index), path); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) field(f field, raw any, v reflect.Value, path string) error {
	if v.Kind() == reflect.Map {
		return d.mapField(f, raw, v, path)
	}
	if f.repeated {
		items, ok := raw.([]any)
		if !ok {
			items = []any{raw}
		}
		out := reflect.MakeSlice(v.Type(), 0, len(items))
		for i, item := range items {
			e := reflect.New(v.Type().Elem()).Elem()
			set, err := d.value(f, item, e, fmt.Sprintf("%s%s[%d].", path, f.name, i))
			if err != nil {
				return err
			}
			if set {
				out = reflect.Append(out, e)
			}
		}
		v.Set(out)
		return nil
	}
	if _, ok := raw.([]any); ok {
		return notExpecting("array", f.name)
	}
	_, err := d.value(f, raw, v, path+f.name+".")
	return err
}

// mapField decodes a protobuf map: a JSON object whose entries are values of
// the synthetic field "value".
func (d *decoder) mapField(f field, raw any, v reflect.Value, path string) error {
	obj, ok := raw.(map[string]any)
	if !ok {
		return notExpecting(kindOf(raw), f.name)
	}
	out := reflect.MakeMap(v.Type())
	for key, item := range obj {
		e := reflect.New(v.Type().Elem()).Elem()
		vf := field{name: "value"}
		if _, err := d.value(vf, item, e, fmt.Sprintf("%s%s[%s].", path, f.name, key)); err != nil {
			return err
		}
		out.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
	}
	v.Set(out)
	return nil
}

// value decodes one value; set is false when it was a null or an unknown enum
// name, which counts as absent.
func (d *decoder) value(f field, raw any, v reflect.Value, path string) (set bool, err error) {
	if raw == nil {
		return false, nil
	}
	if v.Kind() == reflect.Pointer {
		e := reflect.New(v.Type().Elem())
		set, err = d.value(f, raw, e.Elem(), path)
		if set {
			v.Set(e)
		}
		return set, err
	}
	switch r := raw.(type) {
	case map[string]any:
		if v.Kind() != reflect.Struct {
			return false, notExpecting("object", f.name)
		}
		return true, d.message(r, v, path)
	case string:
		return d.text(f, r, v)
	case json.Number:
		return number(f, r, v)
	case bool:
		if v.Kind() != reflect.Bool {
			return false, notExpecting("boolean", f.name)
		}
		v.SetBool(r)
		return true, nil
	}
	return false, notExpecting(kindOf(raw), f.name)
}

func (d *decoder) text(f field, r string, v reflect.Value) (bool, error) {
	switch {
	case f.enum != "":
		n, ok := enumValue(f.enum, r)
		if !ok {
			if f.required {
				return false, fmt.Errorf("Failed to find enum for '%s'", r) // Mesos's text
			}
			return false, nil
		}
		v.SetInt(int64(n))
	case v.Kind() == reflect.String:
		v.SetString(r)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		b, err := base64.StdEncoding.DecodeString(r)
		if err != nil {
			return false, fmt.Errorf("Failed to base64 decode bytes field '%s' for message", f.name) // Mesos's text
		}
		v.SetBytes(b)
	default:
		return false, notExpecting("string", f.name)
	}
	return true, nil
}

func number(f field, r json.Number, v reflect.Value) (bool, error) {
	fl, err := strconv.ParseFloat(string(r), 64)
	if err != nil {
		return false, fmt.Errorf("number out of range for field '%s'", f.name)
	}
	switch v.Kind() {
	case reflect.Float32, reflect.Float64:
		v.SetFloat(fl)
	case reflect.Int, reflect.Int32, reflect.Int64:
		if n, err := strconv.ParseInt(string(r), 10, 64); err == nil {
			v.SetInt(n)
		} else {
			v.SetInt(int64(fl))
		}
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		if n, err := strconv.ParseUint(string(r), 10, 64); err == nil {
			v.SetUint(n)
		} else {
			v.SetUint(uint64(int64(fl)))
		}
	default:
		return false, notExpecting("number", f.name)
	}
	return true, nil
}

func notExpecting(kind, name string) error {
	return fmt.Errorf("Not expecting a JSON %s for field '%s'", kind, name) // Mesos's text
}

func kindOf(raw any) string {
	switch raw.(type) {
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case string:
		return "string"
	case bool:
		return "boolean"
	case json.Number:
		return "number"
	}
	return "null"
}
