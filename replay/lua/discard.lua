-- Remove trajectories whose payload cannot be read, and take back the draw they spoilt.
--
-- ARGV: trajectories to take off the count of drawn ones, then ids.
-- Reply: number removed.

local removed = 0
for i = 2, #ARGV do
  if redis.call('ZSCORE', AGE, ARGV[i]) then
    remove(ARGV[i])
    removed = removed + 1
  end
end
count('corrupt', removed)
count('drawn', -tonumber(ARGV[1]))
return removed
