-- Remove trajectories that cannot be read or are refused, and take back the draw they spoilt.
--
-- ARGV: trajectories to take off the count of drawn ones, then ids.
-- Reply: of each one removed, who produced it.

local producers, refused, freed = {}, {}, 0
for i = 2, #ARGV do
  local meta = redis.call('HGET', META, ARGV[i])
  if meta then
    local _, _, producer = struct.unpack(META_FORMAT, meta)
    producers[#producers + 1] = producer
    refused[#refused + 1] = ARGV[i]
    freed = freed + charge_of(ARGV[i])
  end
end
remove_all(refused)
count('held_bytes', -freed)
count('corrupt', #producers)
count('drawn', -tonumber(ARGV[1]))
return producers
