-- Remove trajectories whose rewards were given before a version of the reward.
--
-- ARGV: version. Reply: number removed.

local ids = redis.call('ZRANGE', AGE, 0, -1)
local void, freed = {}, 0
for i, meta in ipairs(values_of(META, ids)) do
  local _, reward_version = struct.unpack('<dI4', meta)
  if reward_version < tonumber(ARGV[1]) then
    void[#void + 1] = ids[i]
    freed = freed + charge_of(ids[i])
  end
end
remove_all(void)
count('held_bytes', -freed)
count('evicted', #void)
return #void
