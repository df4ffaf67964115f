-- Remove trajectories that cannot be read or are refused, and take back the draw they spoilt.
--
-- ARGV: trajectories to take off the count of drawn ones, then ids.
-- Reply: of each one removed, who produced it.

local producers = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', AGE, ARGV[i]) then
    local _, _, producer = struct.unpack(META_FORMAT, redis.call('HGET', META, ARGV[i]))
    producers[#producers + 1] = producer
    remove(ARGV[i])
  end
end
count('corrupt', #producers)
count('drawn', -tonumber(ARGV[1]))
return producers
