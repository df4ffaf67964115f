-- Remove trajectories whose rewards were given before a version of the reward.
--
-- ARGV: version. Reply: number removed.

local removed = 0
for _, id in ipairs(redis.call('ZRANGE', AGE, 0, -1)) do
  local _, reward_version = struct.unpack('<dI4', redis.call('HGET', META, id))
  if reward_version < tonumber(ARGV[1]) then
    remove(id)
    removed = removed + 1
  end
end
count('evicted', removed)
return removed
