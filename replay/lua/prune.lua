-- Delete all adapter versions but pinned ones and the last k.
--
-- KEYS: namespace. ARGV: k. Reply: the versions deleted, ascending.

local namespace = KEYS[1]
local deleted = {}
for _, version in ipairs(redis.call('ZRANGE', namespace .. ':versions', 0, -1 - tonumber(ARGV[1]))) do
  if redis.call('SISMEMBER', namespace .. ':pinned', version) == 0 then
    redis.call('ZREM', namespace .. ':versions', version)
    redis.call('DEL', namespace .. ':files:' .. version, namespace .. ':manifest:' .. version)
    deleted[#deleted + 1] = tonumber(version)
  end
end
return deleted
