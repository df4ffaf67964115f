-- Make room: remove the oldest, none of a version above a bound.
--
-- ARGV: bytes to free at least, largest version that may go. Reply: bytes freed, number removed.

local wanted, newest = tonumber(ARGV[1]), tonumber(ARGV[2])
local before, removed = counter('held_bytes'), 0
while before - counter('held_bytes') < wanted do
  local id = redis.call('ZRANGE', AGE, 0, 0)[1]
  if not id or version_of(id) > newest then break end
  remove(id)
  removed = removed + 1
end
count('evicted', removed)
return { before - counter('held_bytes'), removed }
