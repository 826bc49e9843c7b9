SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.batches (
    id character varying(64) NOT NULL,
    tenant character varying(64) NOT NULL,
    key_id character varying(32),
    endpoint character varying(32) NOT NULL,
    input_file_id character varying(64) NOT NULL,
    output_file_id character varying(64),
    error_file_id character varying(64),
    completion_window character varying(32) NOT NULL,
    metadata text,
    output_keep_s double precision,
    status character varying(16) NOT NULL,
    created_s double precision NOT NULL,
    expires_s double precision NOT NULL,
    in_progress_s double precision,
    finalizing_s double precision,
    completed_s double precision,
    failed_s double precision,
    expired_s double precision,
    cancelling_s double precision,
    cancelled_s double precision,
    total integer NOT NULL,
    completed integer NOT NULL,
    failed integer NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    errors text
);
CREATE TABLE public.cache_purges (
    id bigint NOT NULL,
    deployment character varying(64),
    version character varying(128),
    tenant character varying(64)
);
CREATE TABLE public.cache_stats (
    worker character varying(96) NOT NULL,
    updated_s double precision NOT NULL,
    stats text NOT NULL
);
CREATE TABLE public.changes (
    id integer NOT NULL,
    routing bigint NOT NULL
);
CREATE SEQUENCE public.changes_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.changes_id_seq OWNED BY public.changes.id;
CREATE TABLE public.deployments (
    name character varying(64) NOT NULL,
    engine character varying(32) NOT NULL,
    version character varying(128) NOT NULL,
    revision character varying(32) NOT NULL,
    artifact character varying(64),
    family character varying(16) NOT NULL,
    settings text NOT NULL,
    updated_s double precision NOT NULL
);
CREATE TABLE public.files (
    id character varying(64) NOT NULL,
    tenant character varying(64) NOT NULL,
    filename text NOT NULL,
    purpose character varying(32) NOT NULL,
    size_bytes bigint NOT NULL,
    created_s double precision NOT NULL,
    expires_s double precision
);
CREATE TABLE public.gateways (
    id character varying(64) NOT NULL,
    url text NOT NULL,
    pid integer NOT NULL,
    process_created_s double precision NOT NULL,
    state character varying(16) NOT NULL,
    updated_s double precision NOT NULL
);
CREATE TABLE public.key_spend (
    key_id character varying(32) NOT NULL,
    day character varying(10) NOT NULL,
    spend double precision NOT NULL,
    updated_s double precision NOT NULL
);
CREATE TABLE public.keys (
    id character varying(32) NOT NULL,
    name character varying(64) NOT NULL,
    role character varying(16) NOT NULL,
    tenant character varying(64) NOT NULL,
    hash character varying(64) NOT NULL,
    hint character varying(24) NOT NULL,
    created_s double precision NOT NULL,
    revoked_s double precision,
    rpm bigint,
    tpm bigint,
    concurrency bigint,
    budget_day double precision,
    budget_month double precision
);
CREATE TABLE public.leases (
    name character varying(32) NOT NULL,
    owner character varying(128) NOT NULL,
    until_s double precision NOT NULL
);
CREATE TABLE public.replicas (
    id character varying(64) NOT NULL,
    deployment character varying(64) NOT NULL,
    engine character varying(32) NOT NULL,
    version character varying(128) NOT NULL,
    revision character varying(32) NOT NULL,
    artifact character varying(64),
    url text NOT NULL,
    state character varying(16) NOT NULL,
    pid integer,
    process_created_s double precision,
    memory_bytes bigint,
    restarts integer NOT NULL,
    message text,
    load text,
    updated_s double precision NOT NULL
);
CREATE TABLE public.request_texts (
    request_id character varying(64) NOT NULL,
    at_s double precision NOT NULL,
    prompt text NOT NULL,
    answer text NOT NULL
);
CREATE TABLE public.requests (
    id bigint NOT NULL,
    at_s double precision NOT NULL,
    request_id character varying(64) NOT NULL,
    endpoint character varying(32) NOT NULL,
    deployment character varying(64),
    version character varying(128),
    replica character varying(64),
    tenant character varying(64),
    key_id character varying(32),
    end_user text,
    status integer NOT NULL,
    error character varying(64),
    stream boolean NOT NULL,
    cache character varying(8),
    attempts integer NOT NULL,
    prompt_tokens integer,
    completion_tokens integer,
    cached_tokens integer,
    queue_ms double precision,
    ttft_ms double precision,
    tpot_ms double precision,
    e2e_ms double precision NOT NULL,
    overhead_us double precision
);
CREATE SEQUENCE public.requests_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.requests_id_seq OWNED BY public.requests.id;
ALTER TABLE ONLY public.changes ALTER COLUMN id SET DEFAULT nextval('public.changes_id_seq'::regclass);
ALTER TABLE ONLY public.requests ALTER COLUMN id SET DEFAULT nextval('public.requests_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0004');
INSERT INTO public.batches VALUES ('batch_1', 'red', 'k1', '/v1/chat/completions', 'file-1', NULL, NULL, '24h', '{"a":"b"}', NULL, 'validating', 1790000000, 1790086400, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 3, 1, 0, 5, 6, 0, NULL);
INSERT INTO public.cache_purges VALUES (1795955776408, 'smol', NULL, 'red');
INSERT INTO public.cache_stats VALUES ('host/gateway-0/5', 1795955776.441236, '{"entries":3}');
INSERT INTO public.changes VALUES (1, 7);
INSERT INTO public.deployments VALUES ('smol', 'openvino', 'smol@v1', 'rev1', 'art1', 'decoder', '{"routing":"auto","cache_when":"deterministic","cache_ttl_s":3600.0,"max_tokens":null,"waiting":1000,"wait_timeout_s":30.0,"first_token_timeout_s":600.0,"idle_timeout_s":120.0,"honours":["temperature"],"upstream_model":null,"key_env":null,"salt_field":"cache_salt","priority_field":null,"batch_slots":32,"created_s":1790000000.0,"slots":8,"timeout_s":null,"hedge_s":null,"price_input":0.5,"price_cached":0.0,"price_output":0.0,"aliases":["small"],"fallback":[]}', 1795955775.967724);
INSERT INTO public.deployments VALUES ('far', 'remote', 'far', 'rev2', NULL, 'decoder', '{"routing":"auto","cache_when":"deterministic","cache_ttl_s":3600.0,"max_tokens":null,"waiting":1000,"wait_timeout_s":30.0,"first_token_timeout_s":600.0,"idle_timeout_s":120.0,"honours":null,"upstream_model":"up","key_env":"FAR_KEY","salt_field":null,"priority_field":null,"batch_slots":32,"created_s":0.0,"slots":null,"timeout_s":null,"hedge_s":null,"price_input":0.0,"price_cached":0.0,"price_output":0.0,"aliases":[],"fallback":[]}', 1795955776.0736873);
INSERT INTO public.files VALUES ('file-1', 'red', 'in.jsonl', 'batch', 99, 1790000000, NULL);
INSERT INTO public.gateways VALUES ('gateway-0', 'http://127.0.0.1:2', 5, 6.5, 'ready', 1795955776.1940494);
INSERT INTO public.key_spend VALUES ('k1', '2026-11-23', 1.25, 1795955776.3471458);
INSERT INTO public.keys VALUES ('80ef5180c8e48188', 'ann', 'user', 'red', '53e3e02ccc8fde95e1df1b8d90131be8e0e39bb0f007fd1d788dc6f23c9e24f9', 'sk-thrifty-xPHZ...', 1795955776.249956, NULL, 60, NULL, NULL, 2.5, NULL);
INSERT INTO public.keys VALUES ('2e3f3000b38e11bf', 'eve', 'monitor', 'eve', 'c32c4e1dc72d7f12fa6c9b637a9519dc699704bbd69c5bff5d4f84c4f7877840', 'sk-thrifty-r2Ni...', 1795955776.30933, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.leases VALUES ('batches', 'host:5', 1795955836.57032);
INSERT INTO public.replicas VALUES ('smol-0', 'smol', 'openvino', 'smol@v1', 'rev1', 'art1', 'http://127.0.0.1:1', 'ready', 7, 8.5, 9, 1, 'fine', '{"running":1}', 1795955776.1181917);
INSERT INTO public.request_texts VALUES ('req-0123456789abcdef0000000001', 1790000000, '{"messages":[{"role":"user","content":"question 0"}]}', 'ä 0');
INSERT INTO public.request_texts VALUES ('client-17', 1790000001, '{"messages":[{"role":"user","content":"question 1"}]}', 'ä 1');
INSERT INTO public.request_texts VALUES ('pruned-row', 1790000009, '{"messages":[{"role":"user","content":"question 9"}]}', 'ä 9');
INSERT INTO public.requests VALUES (1, 1790000000, 'req-0123456789abcdef0000000001', '/v1/chat/completions', 'smol', 'smol@v1', 'smol-0', 'red', 'k1', 'Zoë', 200, NULL, true, 'miss', 1, 30, 12, 8, 0.125, 21.5, 4.25, 80.123, 101.5);
INSERT INTO public.requests VALUES (2, 1790000001, 'client-17', '/v1/chat/completions', 'smol', 'smol@v1', 'smol-0', 'red', 'k1', 'Zoë', 200, NULL, true, 'miss', 1, 30, 12, 8, 0.125, 21.5, 4.25, 81.123, 101.5);
INSERT INTO public.requests VALUES (3, 1790000002, 'client-17', '/v1/chat/completions', 'smol', 'smol@v1', NULL, 'red', 'k1', 'Zoë', 503, 'no_replica', true, 'miss', 2, 30, 12, 8, 0.125, 21.5, 4.25, 82.123, 101.5);
INSERT INTO public.requests VALUES (4, 1790000003, 'req-0123456789abcdef0000000002', '/v1/chat/completions', 'smol', 'smol@v1', 'smol-0', 'red', 'k1', 'Zoë', 200, NULL, false, 'hit', 1, 30, 12, 8, 0.125, NULL, 4.25, 83.123, 101.5);
SELECT pg_catalog.setval('public.changes_id_seq', 1, false);
SELECT pg_catalog.setval('public.requests_id_seq', 4, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.batches
    ADD CONSTRAINT pk_batches PRIMARY KEY (id);
ALTER TABLE ONLY public.cache_purges
    ADD CONSTRAINT pk_cache_purges PRIMARY KEY (id);
ALTER TABLE ONLY public.cache_stats
    ADD CONSTRAINT pk_cache_stats PRIMARY KEY (worker);
ALTER TABLE ONLY public.changes
    ADD CONSTRAINT pk_changes PRIMARY KEY (id);
ALTER TABLE ONLY public.deployments
    ADD CONSTRAINT pk_deployments PRIMARY KEY (name);
ALTER TABLE ONLY public.files
    ADD CONSTRAINT pk_files PRIMARY KEY (id);
ALTER TABLE ONLY public.gateways
    ADD CONSTRAINT pk_gateways PRIMARY KEY (id);
ALTER TABLE ONLY public.key_spend
    ADD CONSTRAINT pk_key_spend PRIMARY KEY (key_id, day);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT pk_keys PRIMARY KEY (id);
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT pk_leases PRIMARY KEY (name);
ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT pk_replicas PRIMARY KEY (id);
ALTER TABLE ONLY public.request_texts
    ADD CONSTRAINT pk_request_texts PRIMARY KEY (request_id);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT pk_requests PRIMARY KEY (id);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT uq_keys_hash UNIQUE (hash);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT uq_keys_name UNIQUE (name);
CREATE INDEX ix_batches_status ON public.batches USING btree (status);
CREATE INDEX ix_batches_tenant_created_s ON public.batches USING btree (tenant, created_s);
CREATE INDEX ix_files_expires_s ON public.files USING btree (expires_s);
CREATE INDEX ix_files_tenant_created_s ON public.files USING btree (tenant, created_s);
CREATE INDEX ix_key_spend_updated_s ON public.key_spend USING btree (updated_s);
CREATE INDEX ix_replicas_deployment ON public.replicas USING btree (deployment);
CREATE INDEX ix_request_texts_at_s ON public.request_texts USING btree (at_s);
CREATE INDEX ix_requests_at_s ON public.requests USING btree (at_s);
CREATE INDEX ix_requests_request_id ON public.requests USING btree (request_id);
