-- Note that a component lives, by the server's clock.
--
-- KEYS: namespace. ARGV: component, state (msgpack).

local now = redis.call('TIME')
redis.call('HSET', KEYS[1] .. ':beats', ARGV[1], now[1] .. '.' .. string.format('%06d', now[2]))
redis.call('HSET', KEYS[1] .. ':components', ARGV[1], ARGV[2])
return 1
