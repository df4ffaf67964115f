-- Hold a run: be its only driver, for a while, by the server's clock.
--
-- KEYS: namespace of the registry. ARGV: owner, milliseconds.
-- Reply: 'yours', 'held' by another owner that lives, or 'left' by one that does not.

local lease, owner = KEYS[1] .. ':lease', KEYS[1] .. ':owner'
local before = redis.call('GET', owner)
if before and before ~= ARGV[1] then
  return redis.call('EXISTS', lease) == 1 and 'held' or 'left'
end
-- Renewing takes no memory: a run on a full server must not look dead.
if before and redis.call('PEXPIRE', lease, ARGV[2]) == 1 then return 'yours' end
redis.call('SET', owner, ARGV[1])
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
return 'yours'
