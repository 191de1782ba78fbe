#!/usr/bin/env bash
# Installs what Cutover's demo and tests need from Debian's or Ubuntu's own packages, and says what it installs.
# Idempotent: does nothing when everything is there. Services that the packages bring are not started.
set -euo pipefail
# Debian keeps both proxies where an ordinary user's PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

want=(haproxy nginx libnginx-mod-http-lua libluajit2-5.1-2 redis-server zookeeper)
missing=()
for p in "${want[@]}"; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
	[ "$status" = installed ] || missing+=("$p")
done

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "setup: needs ${missing[*]}, and this machine has no apt-get. Install them by hand (nginx with its Lua module and OpenResty's LuaJIT; Redis and ZooKeeper for the tests)." >&2
		exit 1
	fi
	sudo=()
	if [ "$(id -u)" -ne 0 ]; then
		command -v sudo >/dev/null || { echo "setup: run as root, or install: ${missing[*]}" >&2; exit 1; }
		sudo=(sudo)
	fi
	echo "setup: installing from this system's packages: ${missing[*]}"
	had_nginx=$(command -v nginx || true)
	had_haproxy=$(command -v haproxy || true)
	had_redis=$(command -v redis-server || true)
	# Keep the packages from starting services on ports 80 and 8080 of this machine.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
		"${sudo[@]}" chmod 755 "$policy"
		trap '"${sudo[@]}" rm -f "$policy"' EXIT
	fi
	log=$(mktemp)
	# A mirror may fail once, and somebody else may be at work with apt.
	apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
	if ! { "${sudo[@]}" "${apt[@]}" update &&
		"${sudo[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
		tail -n 30 "$log" >&2
		echo "setup: apt-get failed; its last lines are above" >&2
		exit 1
	fi
	rm -f "$log"
	# Where a service was started all the same, and was not this machine's before, stop it and keep it off.
	if [ -d /run/systemd/system ]; then
		[ -n "$had_nginx" ] || "${sudo[@]}" systemctl disable --now nginx >/dev/null 2>&1 || true
		[ -n "$had_haproxy" ] || "${sudo[@]}" systemctl disable --now haproxy >/dev/null 2>&1 || true
		[ -n "$had_redis" ] || "${sudo[@]}" systemctl disable --now redis-server >/dev/null 2>&1 || true
	fi
fi

# The Lua module takes either LuaJIT; with the wrong one nginx fails with "undefined symbol: lua_setexdata".
if ! ldconfig -p 2>/dev/null | grep -q libluajit-5.1.so.2 && ! ls /usr/lib/*/libluajit-5.1.so.2 >/dev/null 2>&1; then
	echo "setup: OpenResty's LuaJIT (package libluajit2-5.1-2) is not where nginx's Lua module looks for it" >&2
	exit 1
fi
haproxy=$(haproxy -v | sed -n '1s/^HAProxy version \([^ ]*\).*/\1/p')
nginx=$(nginx -v 2>&1 | sed 's|.*/||')
redis=$(redis-server --version | sed -n 's/.* v=\([^ ]*\).*/\1/p')
zookeeper=$(dpkg-query -W -f '${Version}' zookeeper 2>/dev/null | sed 's/-.*//' || true)
echo "setup: HAProxy $haproxy, nginx $nginx with Lua, Redis $redis, ZooKeeper ${zookeeper:-by hand}, $(go version | cut -d' ' -f3)"
