"""AWS Lambda: a function with the model in its image, that streams answers from its own URL.

Its runtime is ours (`thrifty.aws_lambda`). There is no gateway in a function, so that what only a
gateway does is refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from thrifty.aws_lambda.access import HASH_VARIABLE, IAM_VARIABLE
from thrifty.deploy.base import IMAGE_PATTERN, Files, Request, Target, make_header
from thrifty.deploy.commands import HOURS_A_MONTH, Cost, make_stack_commands
from thrifty.deploy.function_size import FunctionSize, Load, find_function_size
from thrifty.deploy.limits import check_bound, load_platforms
from thrifty.deploy.service import DeployedVersion, dump_spec
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.errors import Problem
from thrifty.prices.table import load_prices
from thrifty.spec.section import Bytes, Duration, Integer, Number, Section

_HOME = "/opt/thrifty-model"
_TEMPORARY_MIB = 512
"""The least that Lambda gives: the model is in the image, and nothing else is written."""
_HONOURED = frozenset({"name", "model", "engine", "compress", "share", "versions", "deployments"})
_OF_MACHINES = frozenset(
    {
        "benchmark", "capacity", "fleet", "load", "machine", "price_per_hour", "prices", "priority",
        "replicas", "routing", "slo",
    }
)  # fmt: skip
"""What plans machines and replicas, which Lambda does itself."""


class LambdaOptions(Section):
    """Options of AWS Lambda."""

    image: str = Field(
        pattern=IMAGE_PATTERN,
        description="The image that the function's is built from: that of deploy/Containerfile.",
    )
    memory: Bytes | None = Field(
        None,
        ge=128 << 20,
        description="Memory of the function, which brings one core for each 1769 MiB. Default: the "
        "least that holds the model and keeps to `tpot`.",
    )
    tpot: Duration = Field(
        0.1, gt=0, description="The longest time between two tokens of an answer."
    )
    prompt: Integer = Field(512, ge=1, description="Tokens of a prompt, on average.")
    answer: Integer = Field(512, ge=1, description="Tokens of an answer, at most.")
    rate: Number = Field(1.0, gt=0, description="Answers a second, at the busiest time.")
    concurrency: Integer | None = Field(
        None,
        ge=1,
        le=10_000,
        description="How many answers run at once, which bounds the costs. Default: enough for `rate`.",
    )
    timeout: Integer | None = Field(
        None,
        ge=1,
        description="Seconds that an answer may take, with the start. Default: twice what is predicted.",
    )
    auth: Literal["key", "iam"] = Field(
        "key",
        description="Who may use it: whoever has the API key, of which the function knows the SHA-256, "
        "or `iam`, who signs requests.",
    )


def render_lambda(request: Request) -> Files:
    """A CloudFormation template, and what the function's image is built from."""
    version = _find_version(request)
    options: LambdaOptions = request.options
    found, load = _find_size(request, version)
    function = {
        "MemorySize": found.memory_mib,
        "Timeout": found.timeout_s,
        "ReservedConcurrentExecutions": found.concurrency,
    }
    template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "Thrifty on AWS Lambda",
        "Metadata": {
            "ThriftySpecChecksum": request.checksum,
            "ThriftyEstimate": found.estimate(load, load_prices().functions["lambda"]),
        },
        "Parameters": _make_parameters(options),
        "Resources": _make_resources(options, function),
        "Outputs": {
            "Url": {"Value": {"Fn::GetAtt": ["Url", "FunctionUrl"]}},
            "Function": {"Value": {"Ref": "Function"}},
        },
    }
    header = make_header(request, "lambda")
    return {
        "template.yaml": header + dump_yaml(template),
        "thrifty.yaml": header + dump_yaml(version.replica_spec()),
        "Containerfile": header + _make_containerfile(options),
    }


def _find_size(request: Request, version: DeployedVersion) -> tuple[FunctionSize, Load]:
    options: LambdaOptions = request.options
    platform = load_platforms()["lambda"]
    if options.timeout is not None:
        check_bound(platform, "timeout", options.timeout, platform.timeout_s, "seconds")
    load = Load(options.tpot, options.prompt, options.answer, options.rate)
    size = find_function_size(
        request, version, platform, load,
        timeout_s=options.timeout, concurrency=options.concurrency,
    )  # fmt: skip
    return size, load


def _find_version(request: Request) -> DeployedVersion:
    """The only version. Raises `SpecError` for what a function cannot do."""
    service = request.service
    problems = [
        Problem(
            key, "needs a gateway, and a function has none; leave it out, or use another target"
        )
        for one in (service.loaded, *(each.loaded for each in service.deployments))
        for key in dump_spec(one.spec)
        if key not in _HONOURED | _OF_MACHINES
    ]
    problems = list(dict.fromkeys(problems))
    if len(service.versions) != 1 or not service.own_versions:
        names = ", ".join(f"{one.deployment}/{one.label}" for one in service.versions)
        message = f"a function serves one version of one model of ours, and the spec has {names}"
        problems.append(Problem("versions", message))
    service.loaded.refuse(problems)
    return service.own_versions[0]


def _make_parameters(options: LambdaOptions) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "ImageUri": {
            "Type": "String",
            "Description": "The function's image in ECR, in the region of the stack.",
            "AllowedPattern": "^[0-9]{12}\\.dkr\\.ecr\\.[a-z0-9-]+\\.amazonaws\\.com(\\.cn)?/.+$",
        }
    }
    if options.auth == "key":
        parameters["KeySha256"] = {
            "Type": "String",
            "Description": "The SHA-256 of the API key, in hex: printf %s KEY | sha256sum",
            "AllowedPattern": "^[0-9a-f]{64}$",
        }
    return parameters


def _make_resources(options: LambdaOptions, function: dict[str, Any]) -> dict[str, Any]:
    has_key = options.auth == "key"
    access = {HASH_VARIABLE: {"Ref": "KeySha256"}} if has_key else {IAM_VARIABLE: "1"}
    resources: dict[str, Any] = {
        "Logs": {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "LogGroupName": {"Fn::Sub": "/thrifty/${AWS::StackName}"},
                "RetentionInDays": 30,
            },
        },
        "Role": {"Type": "AWS::IAM::Role", "Properties": _make_role()},
        "Function": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "Description": "One model, streamed by Thrifty's own runtime",
                "PackageType": "Image",
                "Code": {"ImageUri": {"Ref": "ImageUri"}},
                "Architectures": ["x86_64"],
                **function,
                "EphemeralStorage": {"Size": _TEMPORARY_MIB},
                "Role": {"Fn::GetAtt": ["Role", "Arn"]},
                "LoggingConfig": {"LogGroup": {"Ref": "Logs"}},
                "Environment": {"Variables": access},
            },
        },
        "Url": {
            "Type": "AWS::Lambda::Url",
            "Properties": {
                "TargetFunctionArn": {"Fn::GetAtt": ["Function", "Arn"]},
                "AuthType": "NONE" if has_key else "AWS_IAM",
                "InvokeMode": "RESPONSE_STREAM",
            },
        },
    }
    if has_key:
        # Both are needed since October 2025.
        resources["UrlPermission"] = _make_permission(
            "lambda:InvokeFunctionUrl", {"FunctionUrlAuthType": "NONE"}
        )
        resources["InvokePermission"] = _make_permission(
            "lambda:InvokeFunction", {"InvokedViaFunctionUrl": True}
        )
    return resources


def _make_permission(action: str, bound: dict[str, Any]) -> dict[str, Any]:
    """For everybody who calls by the URL; the runtime checks the key."""
    return {
        "Type": "AWS::Lambda::Permission",
        "Properties": {
            "FunctionName": {"Fn::GetAtt": ["Function", "Arn"]},
            "Action": action,
            "Principal": "*",
            **bound,
        },
    }


def _make_role() -> dict[str, Any]:
    assume = {
        "Effect": "Allow",
        "Principal": {"Service": "lambda.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    write_logs = {
        "Effect": "Allow",
        "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
        "Resource": {"Fn::GetAtt": ["Logs", "Arn"]},
    }
    version = "2012-10-17"
    return {
        "AssumeRolePolicyDocument": {"Version": version, "Statement": [assume]},
        "Policies": [
            {
                "PolicyName": "write-logs",
                "PolicyDocument": {"Version": version, "Statement": [write_logs]},
            }
        ],
    }


def _make_containerfile(options: LambdaOptions) -> str:
    """Fetches and prepares the model while the image is built, so that a start only loads it."""
    return f"""\
# Built beside thrifty.yaml:  buildah bud -t IMAGE .      (or docker build -f Containerfile .)
FROM {options.image}
USER root
# Not the base image's volume: what is written there while building is lost.
ENV THRIFTY_HOME={_HOME}
COPY thrifty.yaml /opt/thrifty.yaml
RUN ["thrifty", "lambda", "bake", "/opt/thrifty.yaml"]
USER 10001:10001
ENTRYPOINT ["python", "-m", "thrifty.aws_lambda"]
CMD []
"""


def find_lambda_cost(request: Request) -> Cost:
    """Nothing at rest; at most as many functions as may run at once."""
    found, load = _find_size(request, _find_version(request))
    price = load_prices().functions["lambda"]
    busy = found.concurrency * found.memory_mib / 1024 * price.per_gb_second
    month = busy * 3600 * HOURS_A_MONTH
    estimate = found.estimate(load, price)
    tokens = estimate.get("dollars_per_million_tokens")
    each = "" if tokens is None else f", about {tokens} for a million tokens of answers"
    text = (
        f"nothing without requests{each}; at most {month:.0f} a month with {found.concurrency} answers "
        f"at once all the time, in {price.region} ({price.source})"
    )
    return Cost(text, month)


TARGET = Target(
    name="lambda",
    summary="An AWS Lambda function that streams answers: a CloudFormation template and an image",
    options=LambdaOptions,
    cannot=(
        "A function has no gateway: no limits, budgets, cache, request log, batches or aliases. What "
        "the spec says of them is refused; use cloudrun or containerapps where they matter.",
        "A function answers one request at a time, so that nothing is batched: a million tokens cost "
        "more than on a machine that is busy.",
        "It has no GPU, at most 10 GiB of memory and 900 s for an answer; what does not fit is refused.",
        "Lambda goes on, and bills, when a client hangs up: it does not tell the function.",
        "SnapStart does not take images, so that each new environment loads the model anew.",
        "Lambda scales by itself: replicas, routing and slo of the spec have no meaning there.",
    ),
    render=render_lambda,
    commands=lambda request, place: make_stack_commands(place),
    cost=find_lambda_cost,
    next_steps=(
        "build and push DIR/Containerfile, then aws cloudformation deploy --template-file "
        "DIR/template.yaml --stack-name thrifty --capabilities CAPABILITY_IAM --parameter-overrides "
        "ImageUri=... KeySha256=...   (docs/deploy/lambda.md)"
    ),
)
