"""The OpenAI dialect: request fields, errors, streamed events, ids."""
