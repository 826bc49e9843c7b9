"""To a replica and back: send, relay, send again, have another deployment answer."""
