package redisstore

import "github.com/redis/go-redis/v9"

// Every script begins so. KEYS: head, values, revs, index, changes, refused. ARGV[1] and ARGV[2] are the revision and the
// nonce of the newest Commit that the caller has seen, 0 for none. Numbers fit a double: a store would need a million
// Commits a second for centuries.
const preamble = `
local head = redis.call('HMGET', KEYS[1], 'format', 'revision', 'epoch', 'nonce', 'bytes')
local format, rev, epoch, bytes = tonumber(head[1] or '0'), tonumber(head[2] or '0'), tonumber(head[3] or '0'), tonumber(head[5] or '0')
local nonce = head[4] or ''
local known = tonumber(ARGV[1])
if rev < known then return {'back', rev} end
if known > 0 then
  local at = nonce
  if rev > known then
    local e = redis.call('XRANGE', KEYS[5], known .. '-0', known .. '-0')
    at = e[1] and e[1][2][2] or ARGV[2]
  end
  if at ~= ARGV[2] then return {'back', rev} end
end
`

// commitScript: ARGV[3] format, [4] epoch, [5] nonce, [6] and [7] bounds of the changes (count, bytes), then for each
// operation its kind (put, create, replace, delete, check), key, value, expected revision.
//
// XADD comes first: it is the only write that can fail, and what a script has written stays written.
var commitScript = redis.NewScript(preamble + `
if format > tonumber(ARGV[3]) then return {'format', format} end
if redis.call('EXISTS', KEYS[6]) == 1 then return {'refused'} end
if tonumber(ARGV[4]) < epoch then return {'fenced', epoch} end
local function current(key) return tonumber(redis.call('HGET', KEYS[3], key) or '0') end
for i = 8, #ARGV, 4 do
  local kind, key, want = ARGV[i], ARGV[i+1], tonumber(ARGV[i+3])
  if kind == 'create' or kind == 'replace' or kind == 'check' then
    local have = current(key)
    if have ~= want then return {'conflict', key, have} end
  end
end
local last = {}
for i = 8, #ARGV, 4 do
  if ARGV[i] ~= 'check' then last[ARGV[i+1]] = i end
end
rev = rev + 1
local writes, size = {}, 0
local entry = {'nonce', ARGV[5], 'size', ''}
for i = 8, #ARGV, 4 do
  local kind, key, value = ARGV[i], ARGV[i+1], ARGV[i+2]
  if last[key] == i then
    if kind ~= 'delete' then
      writes[#writes+1] = i
      entry[#entry+1] = '+' .. key
      entry[#entry+1] = value
      size = size + #key + #value
    elseif current(key) ~= 0 then
      writes[#writes+1] = i
      entry[#entry+1] = '-' .. key
      entry[#entry+1] = ''
      size = size + #key
    end
  end
end
entry[4] = size
redis.call('XADD', KEYS[5], rev .. '-0', unpack(entry))
for _, i in ipairs(writes) do
  local kind, key, value = ARGV[i], ARGV[i+1], ARGV[i+2]
  if kind == 'delete' then
    redis.call('HDEL', KEYS[2], key)
    redis.call('HDEL', KEYS[3], key)
    redis.call('ZREM', KEYS[4], key)
  else
    redis.call('HSET', KEYS[2], key, value)
    redis.call('HSET', KEYS[3], key, rev)
    redis.call('ZADD', KEYS[4], 0, key)
  end
end
bytes = bytes + size
local count = redis.call('XLEN', KEYS[5])
while count > 1 and (count > tonumber(ARGV[6]) or bytes > tonumber(ARGV[7])) do
  local oldest = redis.call('XRANGE', KEYS[5], '-', '+', 'COUNT', 1)[1]
  bytes = bytes - tonumber(oldest[2][4])
  redis.call('XDEL', KEYS[5], oldest[1])
  count = count - 1
end
redis.call('HSET', KEYS[1], 'format', ARGV[3], 'revision', rev, 'epoch', ARGV[4], 'nonce', ARGV[5], 'bytes', bytes)
return {'ok', rev}
`)

// settleScript finds out whether the Commit with the nonce ARGV[3] happened after revision ARGV[4]. If not, it never will.
// ARGV[5] is for how many seconds it must be kept from happening.
var settleScript = redis.NewScript(preamble + `
local since = tonumber(ARGV[4])
if rev > since then
  local entries = redis.call('XRANGE', KEYS[5], (since + 1) .. '-0', '+')
  if #entries ~= rev - since then return {'lost'} end
  for _, e in ipairs(entries) do
    if e[2][2] == ARGV[3] then return {'written', tonumber(string.match(e[1], '^%d+'))} end
  end
end
redis.call('SET', KEYS[6], '1', 'EX', ARGV[5])
return {'never'}
`)

// headScript returns the newest revision, its nonce and the format.
var headScript = redis.NewScript(preamble + `return {'ok', rev, nonce, format}`)

// getScript reads the record ARGV[3].
var getScript = redis.NewScript(preamble + `
local at = redis.call('HGET', KEYS[3], ARGV[3])
if not at then return {'ok', rev, nonce, 0, ''} end
return {'ok', rev, nonce, tonumber(at), redis.call('HGET', KEYS[2], ARGV[3])}
`)

// listScript reads up to ARGV[5] records between the bounds ARGV[3] and ARGV[4] of ZRANGEBYLEX.
var listScript = redis.NewScript(preamble + `
local keys = redis.call('ZRANGEBYLEX', KEYS[4], ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[5])
local out = {'ok', rev, nonce}
for _, key in ipairs(keys) do
  out[#out+1] = key
  out[#out+1] = tonumber(redis.call('HGET', KEYS[3], key))
  out[#out+1] = redis.call('HGET', KEYS[2], key)
end
return out
`)
