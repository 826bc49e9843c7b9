BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE batches (
	id VARCHAR(64) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	key_id VARCHAR(32), 
	endpoint VARCHAR(32) NOT NULL, 
	input_file_id VARCHAR(64) NOT NULL, 
	output_file_id VARCHAR(64), 
	error_file_id VARCHAR(64), 
	completion_window VARCHAR(32) NOT NULL, 
	metadata TEXT, 
	output_keep_s DOUBLE, 
	status VARCHAR(16) NOT NULL, 
	created_s DOUBLE NOT NULL, 
	expires_s DOUBLE NOT NULL, 
	in_progress_s DOUBLE, 
	finalizing_s DOUBLE, 
	completed_s DOUBLE, 
	failed_s DOUBLE, 
	expired_s DOUBLE, 
	cancelling_s DOUBLE, 
	cancelled_s DOUBLE, 
	total INTEGER NOT NULL, 
	completed INTEGER NOT NULL, 
	failed INTEGER NOT NULL, 
	prompt_tokens BIGINT NOT NULL, 
	completion_tokens BIGINT NOT NULL, 
	cached_tokens BIGINT NOT NULL, 
	errors TEXT, 
	CONSTRAINT pk_batches PRIMARY KEY (id)
);
INSERT INTO "batches" VALUES('batch_1','red','k1','/v1/chat/completions','file-1',NULL,NULL,'24h','{"a":"b"}',NULL,'validating',1790000000.0,1790086400.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,3,1,0,5,6,0,NULL);
CREATE TABLE cache_purges (
	id BIGINT NOT NULL, 
	deployment VARCHAR(64), 
	version VARCHAR(128), 
	tenant VARCHAR(64), 
	CONSTRAINT pk_cache_purges PRIMARY KEY (id)
);
INSERT INTO "cache_purges" VALUES(1795955766556,'smol',NULL,'red');
CREATE TABLE cache_stats (
	worker VARCHAR(96) NOT NULL, 
	updated_s DOUBLE NOT NULL, 
	stats TEXT NOT NULL, 
	CONSTRAINT pk_cache_stats PRIMARY KEY (worker)
);
INSERT INTO "cache_stats" VALUES('host/gateway-0/5',1.79595576657284283642e+09,'{"entries":3}');
CREATE TABLE changes (
	id INTEGER NOT NULL, 
	routing BIGINT NOT NULL, 
	CONSTRAINT pk_changes PRIMARY KEY (id)
);
INSERT INTO "changes" VALUES(1,7);
CREATE TABLE deployments (
	name VARCHAR(64) NOT NULL, 
	engine VARCHAR(32) NOT NULL, 
	version VARCHAR(128) NOT NULL, 
	revision VARCHAR(32) NOT NULL, 
	artifact VARCHAR(64), 
	family VARCHAR(16) NOT NULL, 
	settings TEXT NOT NULL, 
	updated_s DOUBLE NOT NULL, 
	CONSTRAINT pk_deployments PRIMARY KEY (name)
);
INSERT INTO "deployments" VALUES('smol','openvino','smol@v1','rev1','art1','decoder','{"routing":"auto","cache_when":"deterministic","cache_ttl_s":3600.0,"max_tokens":null,"waiting":1000,"wait_timeout_s":30.0,"first_token_timeout_s":600.0,"idle_timeout_s":120.0,"honours":["temperature"],"upstream_model":null,"key_env":null,"salt_field":"cache_salt","priority_field":null,"batch_slots":32,"created_s":1790000000.0,"slots":8,"timeout_s":null,"hedge_s":null,"price_input":0.5,"price_cached":0.0,"price_output":0.0,"aliases":["small"],"fallback":[]}',1.79595576635467982294e+09);
INSERT INTO "deployments" VALUES('far','remote','far','rev2',NULL,'decoder','{"routing":"auto","cache_when":"deterministic","cache_ttl_s":3600.0,"max_tokens":null,"waiting":1000,"wait_timeout_s":30.0,"first_token_timeout_s":600.0,"idle_timeout_s":120.0,"honours":null,"upstream_model":"up","key_env":"FAR_KEY","salt_field":null,"priority_field":null,"batch_slots":32,"created_s":0.0,"slots":null,"timeout_s":null,"hedge_s":null,"price_input":0.0,"price_cached":0.0,"price_output":0.0,"aliases":[],"fallback":[]}',1.79595576642253327366e+09);
CREATE TABLE files (
	id VARCHAR(64) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	filename TEXT NOT NULL, 
	purpose VARCHAR(32) NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	created_s DOUBLE NOT NULL, 
	expires_s DOUBLE, 
	CONSTRAINT pk_files PRIMARY KEY (id)
);
INSERT INTO "files" VALUES('file-1','red','in.jsonl','batch',99,1790000000.0,NULL);
CREATE TABLE gateways (
	id VARCHAR(64) NOT NULL, 
	url TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	process_created_s DOUBLE NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	updated_s DOUBLE NOT NULL, 
	CONSTRAINT pk_gateways PRIMARY KEY (id)
);
INSERT INTO "gateways" VALUES('gateway-0','http://127.0.0.1:2',5,6.5,'ready',1.79595576646946740147e+09);
CREATE TABLE key_spend (
	key_id VARCHAR(32) NOT NULL, 
	day VARCHAR(10) NOT NULL, 
	spend DOUBLE NOT NULL, 
	updated_s DOUBLE NOT NULL, 
	CONSTRAINT pk_key_spend PRIMARY KEY (key_id, day)
);
INSERT INTO "key_spend" VALUES('k1','2026-11-23',1.25,1.79595576652913212776e+09);
CREATE TABLE keys (
	id VARCHAR(32) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	hint VARCHAR(24) NOT NULL, 
	created_s DOUBLE NOT NULL, 
	revoked_s DOUBLE, rpm BIGINT, tpm BIGINT, concurrency BIGINT, budget_day DOUBLE, budget_month DOUBLE, 
	CONSTRAINT pk_keys PRIMARY KEY (id), 
	CONSTRAINT uq_keys_hash UNIQUE (hash), 
	CONSTRAINT uq_keys_name UNIQUE (name)
);
INSERT INTO "keys" VALUES('97e649082ac44c75','ann','user','red','70bd5eaa759a24122659c294d685464ad86ec9fdd9623f4c19055117b69ea397','sk-thrifty-sHaS...',1.79595576649748396875e+09,NULL,60,NULL,NULL,2.5,NULL);
INSERT INTO "keys" VALUES('8580f10f60602ee3','eve','monitor','eve','cd676a317adad19135884040db7254163619acd32255722daa19b416f30dbe7e','sk-thrifty-ajdn...',1.79595576652128124236e+09,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE leases (
	name VARCHAR(32) NOT NULL, 
	owner VARCHAR(128) NOT NULL, 
	until_s DOUBLE NOT NULL, 
	CONSTRAINT pk_leases PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('batches','host:5',1.79595582665372729296e+09);
CREATE TABLE replicas (
	id VARCHAR(64) NOT NULL, 
	deployment VARCHAR(64) NOT NULL, 
	engine VARCHAR(32) NOT NULL, 
	version VARCHAR(128) NOT NULL, 
	revision VARCHAR(32) NOT NULL, 
	artifact VARCHAR(64), 
	url TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	pid INTEGER, 
	process_created_s DOUBLE, 
	memory_bytes BIGINT, 
	restarts INTEGER NOT NULL, 
	message TEXT, 
	load TEXT, 
	updated_s DOUBLE NOT NULL, 
	CONSTRAINT pk_replicas PRIMARY KEY (id)
);
INSERT INTO "replicas" VALUES('smol-0','smol','openvino','smol@v1','rev1','art1','http://127.0.0.1:1','ready',7,8.5,9,1,'fine','{"running":1}',1.79595576642481207854e+09);
CREATE TABLE request_texts (
	request_id VARCHAR(64) NOT NULL, 
	at_s DOUBLE NOT NULL, 
	prompt TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	CONSTRAINT pk_request_texts PRIMARY KEY (request_id)
);
INSERT INTO "request_texts" VALUES('req-0123456789abcdef0000000001',1790000000.0,'{"messages":[{"role":"user","content":"question 0"}]}','ä 0');
INSERT INTO "request_texts" VALUES('client-17',1790000001.0,'{"messages":[{"role":"user","content":"question 1"}]}','ä 1');
INSERT INTO "request_texts" VALUES('pruned-row',1790000009.0,'{"messages":[{"role":"user","content":"question 9"}]}','ä 9');
CREATE TABLE requests (
	id INTEGER NOT NULL, 
	at_s DOUBLE NOT NULL, 
	request_id VARCHAR(64) NOT NULL, 
	endpoint VARCHAR(32) NOT NULL, 
	deployment VARCHAR(64), 
	version VARCHAR(128), 
	replica VARCHAR(64), 
	tenant VARCHAR(64), 
	key_id VARCHAR(32), 
	end_user TEXT, 
	status INTEGER NOT NULL, 
	error VARCHAR(64), 
	stream BOOLEAN NOT NULL, 
	cache VARCHAR(8), 
	attempts INTEGER NOT NULL, 
	prompt_tokens INTEGER, 
	completion_tokens INTEGER, 
	cached_tokens INTEGER, 
	queue_ms DOUBLE, 
	ttft_ms DOUBLE, 
	tpot_ms DOUBLE, 
	e2e_ms DOUBLE NOT NULL, 
	overhead_us DOUBLE, 
	CONSTRAINT pk_requests PRIMARY KEY (id)
);
INSERT INTO "requests" VALUES(1,1790000000.0,'req-0123456789abcdef0000000001','/v1/chat/completions','smol','smol@v1','smol-0','red','k1','Zoë',200,NULL,1,'miss',1,30,12,8,0.125,21.5,4.25,80.123,101.5);
INSERT INTO "requests" VALUES(2,1790000001.0,'client-17','/v1/chat/completions','smol','smol@v1','smol-0','red','k1','Zoë',200,NULL,1,'miss',1,30,12,8,0.125,21.5,4.25,81.123,101.5);
INSERT INTO "requests" VALUES(3,1790000002.0,'client-17','/v1/chat/completions','smol','smol@v1',NULL,'red','k1','Zoë',503,'no_replica',1,'miss',2,30,12,8,0.125,21.5,4.25,82.123,101.5);
INSERT INTO "requests" VALUES(4,1790000003.0,'req-0123456789abcdef0000000002','/v1/chat/completions','smol','smol@v1','smol-0','red','k1','Zoë',200,NULL,0,'hit',1,30,12,8,0.125,NULL,4.25,83.123,101.5);
CREATE INDEX ix_replicas_deployment ON replicas (deployment);
CREATE INDEX ix_request_texts_at_s ON request_texts (at_s);
CREATE INDEX ix_requests_at_s ON requests (at_s);
CREATE INDEX ix_requests_request_id ON requests (request_id);
CREATE INDEX ix_key_spend_updated_s ON key_spend (updated_s);
CREATE INDEX ix_files_tenant_created_s ON files (tenant, created_s);
CREATE INDEX ix_files_expires_s ON files (expires_s);
CREATE INDEX ix_batches_tenant_created_s ON batches (tenant, created_s);
CREATE INDEX ix_batches_status ON batches (status);
COMMIT;
