package wire

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

func TestUnmarshalJSONRefusals(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"truncated", `{"type":`, "syntax error at line 1 near: "},
		{"empty", ``, "syntax error at line 1 near: "},
		{"array", `[1]`, "Expecting a JSON object"},
		{"wrong type", `{"type":"REVIVE","framework_id":"x"}`, "Not expecting a JSON string for field 'framework_id'"},
		{"required", `{"type":"KILL","kill":{}}`, "Missing required fields: kill.task_id"},
		{"required nested", `{"accept":{"operations":[{"type":"LAUNCH","launch":{"task_infos":[{"name":"a","task_id":{"value":"a"},"agent_id":{"value":"x"},"executor":{}}]}}]}}`,
			"Missing required fields: accept.operations[0].launch.task_infos[0].executor.executor_id"},
		{"limits", `{"accept":{"operations":[{"type":"LAUNCH","launch":{"task_infos":[{"limits":{"cpus":1}}]}}]}}`,
			"Not expecting a JSON number for field 'value'"},
		{"trailing", `{} x`, "syntax error at line 1 near: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c scheduler.Call
			err := UnmarshalJSON([]byte(tt.in), &c)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Fatalf("error %v, want prefix %q", err, tt.want)
			}
			if errors.Is(err, ErrNotJSON) != strings.HasPrefix(tt.want, "syntax") {
				t.Fatalf("ErrNotJSON wrong for %v", err)
			}
		})
	}
}

func TestUnmarshalJSONTolerates(t *testing.T) {
	var c scheduler.Call
	in := `{"type":"NOPE","nope":1,"framework_id":null,"accept":{"offer_ids":[{"value":"o"}],"filters":{"refuse_seconds":3}}}`
	if err := UnmarshalJSON([]byte(in), &c); err != nil {
		t.Fatal(err)
	}
	if c.Type != scheduler.Call_UNKNOWN || c.FrameworkID != nil || c.Accept.OfferIDs[0].Value != "o" || *c.Accept.Filters.RefuseSeconds != 3 {
		t.Fatalf("decoded %+v", c)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	in := `{"framework_id":{"value":"f"},"type":"ACCEPT","accept":{"offer_ids":[{"value":"<o>"}],"operations":[{"type":"LAUNCH","launch":{"task_infos":[{"name":"t","task_id":{"value":"t"},"agent_id":{"value":"a"},"resources":[{"name":"cpus","type":"SCALAR","scalar":{"value":0.5}},{"name":"ports","type":"RANGES","ranges":{"range":[{"begin":31000,"end":31001}]}}],"data":"AAEC","limits":{"cpus":{"value":1.0}}}]}}],"filters":{"refuse_seconds":5.0}}}`
	var c scheduler.Call
	if err := UnmarshalJSON([]byte(in), &c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, string(MarshalJSON(&c))); diff != "" {
		t.Fatal(diff)
	}
	pb, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var d scheduler.Call
	if err := UnmarshalProto(pb, &d); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, string(MarshalJSON(&d))); diff != "" {
		t.Fatal(diff)
	}
}

func TestFloat(t *testing.T) {
	for in, want := range map[float64]string{4: "4.0", 0.1: "0.1", 3.999: "3.999", 1e300: "1e+300", 0: "0.0"} {
		if got := Float(in); got != want {
			t.Errorf("Float(%v) = %q, want %q", in, got, want)
		}
	}
}

// TestUnmarshalProtoRecovers feeds the crafted length that makes generated
// code of this age panic.
func TestUnmarshalProtoRecovers(t *testing.T) {
	evil := []byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x00}
	var e scheduler.Event
	if err := UnmarshalProto(evil, &e); err == nil {
		t.Fatal("a length of 2^63-1 was accepted")
	}
}

func FuzzUnmarshalProto(f *testing.F) {
	c := scheduler.Call{Type: scheduler.Call_KILL, Kill: &scheduler.Call_Kill{TaskID: mesos.TaskID{Value: "x"}}}
	b, _ := c.Marshal()
	f.Add(b)
	f.Fuzz(func(_ *testing.T, data []byte) {
		var c scheduler.Call
		_ = UnmarshalProto(data, &c)
	})
}

func FuzzUnmarshalJSON(f *testing.F) {
	f.Add([]byte(`{"type":"KILL","kill":{"task_id":{"value":"x"}}}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var c scheduler.Call
		if UnmarshalJSON(data, &c) == nil {
			MarshalJSON(&c)
		}
	})
}
