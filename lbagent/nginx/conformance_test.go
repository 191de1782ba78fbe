package nginx_test

import (
	"testing"

	"github.com/cutover/cutover/lbagent/drivertest"
)

func TestLuaConformance(t *testing.T) {
	drivertest.Run(t, luaHarness)
}

func BenchmarkLuaOneChange(b *testing.B) {
	drivertest.BenchmarkOneChange(b, luaHarness)
}

func BenchmarkLuaPrepare(b *testing.B) {
	drivertest.BenchmarkPrepare(b, luaHarness)
}

var luaHarness = drivertest.Harness{
	Name:     lua.name,
	NewProxy: func(t testing.TB) drivertest.Proxy { return startProxy(t, lua) },
}
