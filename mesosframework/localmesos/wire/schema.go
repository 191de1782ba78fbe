package wire

import (
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"

	gogo "github.com/gogo/protobuf/proto"
)

// field describes one protobuf field of a generated struct.
type field struct {
	index    int    // of the Go struct field
	number   int    // protobuf field number, gives the order on output
	name     string // protobuf name, which is also the JSON name
	required bool
	repeated bool
	enum     string // registered enum name, "" when not an enum
}

// schema is what the JSON codec knows about one message type.
type schema struct {
	fields []field // ascending by number
	byName map[string]int
}

var schemas sync.Map // reflect.Type of a struct -> *schema

// schemaOf returns the schema of a generated struct type, from its protobuf
// struct tags.
func schemaOf(t reflect.Type) *schema {
	if s, ok := schemas.Load(t); ok {
		return s.(*schema)
	}
	s := &schema{byName: map[string]int{}}
	for i := range t.NumField() {
		tag, ok := t.Field(i).Tag.Lookup("protobuf")
		if !ok {
			continue
		}
		parts := strings.Split(tag, ",")
		f := field{index: i}
		f.number, _ = strconv.Atoi(parts[1])
		f.required = parts[2] == "req"
		f.repeated = parts[2] == "rep"
		for _, p := range parts[3:] {
			if v, ok := strings.CutPrefix(p, "name="); ok {
				f.name = v
			}
			if v, ok := strings.CutPrefix(p, "enum="); ok {
				f.enum = v
			}
		}
		s.fields = append(s.fields, f)
	}
	sort.Slice(s.fields, func(i, j int) bool { return s.fields[i].number < s.fields[j].number })
	for i, f := range s.fields {
		s.byName[f.name] = i
	}
	got, _ := schemas.LoadOrStore(t, s)
	return got.(*schema)
}

// enumValue returns the number of an enum name.
func enumValue(enum, name string) (int32, bool) {
	v, ok := gogo.EnumValueMap(enum)[name]
	return v, ok
}

var (
	enumNamesMu sync.Mutex
	enumNames   = map[string]map[int32]string{}
)

// enumName returns the name of an enum number, or the number itself.
func enumName(enum string, v int32) string {
	enumNamesMu.Lock()
	defer enumNamesMu.Unlock()
	names, ok := enumNames[enum]
	if !ok {
		names = map[int32]string{}
		for n, num := range gogo.EnumValueMap(enum) {
			names[num] = n
		}
		enumNames[enum] = names
	}
	if n, ok := names[v]; ok {
		return n
	}
	return fmt.Sprint(v)
}
