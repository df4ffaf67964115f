-- Make an adapter version available.
--
-- KEYS: namespace. ARGV: version, checksum, token of this call, then name, bytes, name, bytes, …
-- Reply: {1} when published, by this call or an earlier attempt of it; else {0, latest version}.

local namespace = KEYS[1]
local version = tonumber(ARGV[1])
local latest = tonumber(redis.call('GET', namespace .. ':latest') or '0')
local manifest = namespace .. ':manifest:' .. ARGV[1]
if version <= latest then
  -- The reply to the first attempt was lost and the client asks again.
  if redis.call('HGET', manifest, 'token') == ARGV[3] then return { 1 } end
  return { 0, latest }
end
redis.call('HSET', manifest, 'checksum', ARGV[2], 'token', ARGV[3])
for i = 4, #ARGV, 2 do
  redis.call('HSET', namespace .. ':files:' .. ARGV[1], ARGV[i], ARGV[i + 1])
end
redis.call('ZADD', namespace .. ':versions', version, ARGV[1])
redis.call('SET', namespace .. ':latest', ARGV[1])
return { 1 }
