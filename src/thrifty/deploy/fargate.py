"""AWS ECS Fargate: a CloudFormation template with one service of whole containers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.deploy.base import HOME, Files, Request, Target, make_header
from thrifty.deploy.commands import HOURS_A_MONTH, Cost, make_stack_commands
from thrifty.deploy.limits import GIB, choose_size, load_platforms
from thrifty.deploy.one_container import (
    CANNOT_SHARE,
    SPEC_VARIABLE,
    START_S,
    OneContainerOptions,
    find_container_need,
    list_secret_variables,
    make_arguments,
    make_spec_text,
    refuse_shared_database,
)
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.errors import Problem, SpecError
from thrifty.prices.table import load_prices
from thrifty.spec.section import Integer

_MIN_DISK_GIB = 21
_MAX_START_S = 300
_MAX_STOP_S = 120


class FargateOptions(OneContainerOptions):
    """Options of ECS Fargate."""

    count: Integer = Field(1, ge=1, le=1000, description="How many tasks run.")
    spot: bool = Field(False, description="Run on Fargate Spot, which may end a task at any time.")


def render_fargate(request: Request) -> Files:
    """A CloudFormation template. The network and the secrets are parameters."""
    refuse_shared_database(request, "fargate")
    need = find_container_need(request)
    platform = load_platforms()["fargate"]
    size = choose_size(platform, need)
    if platform.disk_bytes is not None and need.disk_bytes > platform.disk_bytes:
        message = (
            f"the files of the models take {need.disk_bytes / GIB:.0f} GiB, and {platform.name} has "
            f"{platform.disk_bytes / GIB:g} GiB at most (read {platform.read}, {platform.source})"
        )
        raise SpecError([Problem("model", message)], f"the limits of {platform.name}")
    secrets, optional = list_secret_variables(request), request.service.credential_variables()
    conditions = {
        _as_condition(name): {"Fn::Not": [{"Fn::Equals": [{"Ref": _as_parameter(name)}, ""]}]}
        for name in optional
    }
    template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "Thrifty on ECS Fargate",
        "Metadata": {"ThriftySpecChecksum": request.checksum},
        "Parameters": _make_parameters(secrets, optional),
        **({"Conditions": conditions} if conditions else {}),
        "Resources": _make_resources(
            request, size.cpus, size.memory_bytes, need.disk_bytes, secrets, optional
        ),
        "Outputs": {
            "Cluster": {"Value": {"Ref": "Cluster"}},
            "Service": {"Value": {"Ref": "Service"}},
        },
    }
    return {"template.yaml": make_header(request, "fargate") + dump_yaml(template)}


def _make_parameters(secrets: list[str], optional: list[str]) -> dict[str, Any]:
    return {
        "Vpc": {"Type": "AWS::EC2::VPC::Id"},
        "Subnets": {"Type": "List<AWS::EC2::Subnet::Id>"},
        "ClientSecurityGroup": {
            "Type": "AWS::EC2::SecurityGroup::Id",
            "Description": "Who may call: the security group of the load balancer, say.",
        },
        "TargetGroupArn": {
            "Type": "String",
            "Description": "A target group of the type ip, of a load balancer that ends TLS.",
        },
        **{
            _as_parameter(name): {
                "Type": "String",
                "Description": f"The ARN of the secret for {name}, in Secrets Manager.",
                "AllowedPattern": "^arn:aws[a-z-]*:secretsmanager:.*$",
            }
            for name in secrets
        },
        **{
            _as_parameter(name): {
                "Type": "String",
                "Default": "",
                "Description": f"The same for {name}, where the model's remote needs it.",
                "AllowedPattern": "^(arn:aws[a-z-]*:secretsmanager:.*)?$",
            }
            for name in optional
        },
    }


def _make_resources(
    request: Request,
    cpus: float,
    memory_bytes: int,
    disk_bytes: int,
    secrets: list[str],
    optional: list[str],
) -> dict[str, Any]:
    port = request.service.port
    arns = {name: {"Ref": _as_parameter(name)} for name in [*secrets, *optional]}
    readable = [_where_given(name, arn, optional) for name, arn in arns.items()]
    given = [
        _where_given(name, {"Name": name, "ValueFrom": arn}, optional) for name, arn in arns.items()
    ]
    return {
        "Cluster": {
            "Type": "AWS::ECS::Cluster",
            "Properties": {"CapacityProviders": ["FARGATE", "FARGATE_SPOT"]},
        },
        "Logs": {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "LogGroupName": {"Fn::Sub": "/thrifty/${AWS::StackName}"},
                "RetentionInDays": 30,
            },
        },
        "ExecutionRole": _make_role(readable),
        "SecurityGroup": {
            "Type": "AWS::EC2::SecurityGroup",
            "Properties": {
                "GroupDescription": "The gateway of Thrifty",
                "VpcId": {"Ref": "Vpc"},
                "SecurityGroupIngress": [
                    {
                        "IpProtocol": "tcp", "FromPort": port, "ToPort": port,
                        "SourceSecurityGroupId": {"Ref": "ClientSecurityGroup"},
                        "Description": "requests",
                    }
                ],
            },
        },
        "Task": {
            "Type": "AWS::ECS::TaskDefinition",
            "Properties": _make_task(request, cpus, memory_bytes, disk_bytes, given),
        },
        "Service": _make_service(request.options, port),
    }  # fmt: skip


def _make_role(secrets: list[dict[str, Any]]) -> dict[str, Any]:
    """Who starts the task: it may read the secrets, and write the log."""
    assume = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ecs-tasks.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    read_secrets = {
        "PolicyName": "read-secrets",
        "PolicyDocument": {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": "secretsmanager:GetSecretValue",
                    "Resource": secrets,
                }
            ],
        },
    }
    policy = "arn:${AWS::Partition}:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": assume,
            "ManagedPolicyArns": [{"Fn::Sub": policy}],
            "Policies": [read_secrets],
        },
    }


def _make_service(options: FargateOptions, port: int) -> dict[str, Any]:
    """The tasks that run, behind the load balancer's target group."""
    strategy = {"CapacityProvider": "FARGATE_SPOT" if options.spot else "FARGATE", "Weight": 1}
    return {
        "Type": "AWS::ECS::Service",
        "Properties": {
            "Cluster": {"Ref": "Cluster"},
            "TaskDefinition": {"Ref": "Task"},
            "DesiredCount": options.count,
            "CapacityProviderStrategy": [strategy],
            "HealthCheckGracePeriodSeconds": START_S,
            "DeploymentConfiguration": {
                "MinimumHealthyPercent": 100,
                "MaximumPercent": 200,
                "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
            },
            "LoadBalancers": [
                {
                    "ContainerName": "thrifty", "ContainerPort": port,
                    "TargetGroupArn": {"Ref": "TargetGroupArn"},
                }
            ],
            "NetworkConfiguration": {
                "AwsvpcConfiguration": {
                    "AssignPublicIp": "DISABLED",
                    "SecurityGroups": [{"Ref": "SecurityGroup"}],
                    "Subnets": {"Ref": "Subnets"},
                }
            },
        },
    }  # fmt: skip


def _make_task(
    request: Request,
    cpus: float,
    memory_bytes: int,
    disk_bytes: int,
    secrets: list[dict[str, Any]],
) -> dict[str, Any]:
    port = request.service.port
    probe = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/healthz', timeout=5)"
    drain_s = round(request.service.loaded.spec.gateway.drain_timeout)
    container = {
        "Name": "thrifty",
        "Image": request.options.image,
        "Essential": True,
        "EntryPoint": ["thrifty"],
        "Command": make_arguments(f"env:{SPEC_VARIABLE}"),
        "User": "10001:10001",
        "ReadonlyRootFilesystem": True,
        "StopTimeout": min(_MAX_STOP_S, drain_s + 40),
        "PortMappings": [{"ContainerPort": port, "Protocol": "tcp"}],
        "Environment": [
            {"Name": "THRIFTY_HOME", "Value": HOME},
            {"Name": "HOME", "Value": "/tmp"},  # noqa: S108
            {"Name": SPEC_VARIABLE, "Value": make_spec_text(request)},
        ],
        "Secrets": secrets,
        "MountPoints": [
            {"SourceVolume": "home", "ContainerPath": HOME},
            {"SourceVolume": "tmp", "ContainerPath": "/tmp"},  # noqa: S108
        ],
        "HealthCheck": {
            "Command": ["CMD", "python", "-c", probe],
            "Interval": 10,
            "Timeout": 10,
            "Retries": 10,
            "StartPeriod": _MAX_START_S,
        },
        "LogConfiguration": {
            "LogDriver": "awslogs",
            "Options": {
                "awslogs-group": {"Ref": "Logs"},
                "awslogs-region": {"Ref": "AWS::Region"},
                "awslogs-stream-prefix": "thrifty",
            },
        },
    }
    disk_gib = max(_MIN_DISK_GIB, -(-disk_bytes * 2 // GIB))
    return {
        "RequiresCompatibilities": ["FARGATE"],
        "NetworkMode": "awsvpc",
        "Cpu": str(round(cpus * 1024)),
        "Memory": str(memory_bytes * 1024 // GIB),
        "EphemeralStorage": {"SizeInGiB": min(200, disk_gib)},
        "ExecutionRoleArn": {"Fn::GetAtt": ["ExecutionRole", "Arn"]},
        "RuntimePlatform": {"CpuArchitecture": "X86_64", "OperatingSystemFamily": "LINUX"},
        "Volumes": [{"Name": "home"}, {"Name": "tmp"}],
        "ContainerDefinitions": [container],
    }


def _as_parameter(variable: str) -> str:
    """`ThriftyAdminKeyArn` for `THRIFTY_ADMIN_KEY`."""
    return "".join(part.capitalize() for part in variable.split("_")) + "Arn"


def _as_condition(variable: str) -> str:
    return f"Has{_as_parameter(variable)}"


def _where_given(variable: str, part: dict[str, Any], optional: list[str]) -> dict[str, Any]:
    """A part of the template that goes with a secret, which an optional one need not be there for."""
    if variable not in optional:
        return part
    return {"Fn::If": [_as_condition(variable), part, {"Ref": "AWS::NoValue"}]}


def find_fargate_cost(request: Request) -> Cost:
    """Of the tasks, which always run."""
    size = choose_size(load_platforms()["fargate"], find_container_need(request))
    price = load_prices().containers["fargate"]
    each = size.cpus * price.per_vcpu_hour + size.memory_bytes / GIB * price.per_gib_hour
    month = request.options.count * each * HOURS_A_MONTH
    text = (
        f"{request.options.count} x {each:.4f} an hour for {size.cpus:g} cores and "
        f"{size.memory_bytes / GIB:g} GiB, {month:.0f} a month in {price.region}, without the load "
        f"balancer and traffic ({price.source})"
    )
    return Cost(text, month)


TARGET = Target(
    name="fargate",
    summary="AWS ECS Fargate: a CloudFormation template",
    options=FargateOptions,
    cannot=(
        *CANNOT_SHARE,
        "Fargate has no GPUs and no scaling to zero: the tasks in `count` always run and cost.",
        f"A health check grants {_MAX_START_S} s and ten tries more before a task is given up: put "
        "models that take longer to fetch into an image of your own.",
        "The load balancer is yours: the template takes its target group and security group.",
    ),
    render=render_fargate,
    commands=lambda request, place: make_stack_commands(place),
    cost=find_fargate_cost,
    next_steps=(
        "aws cloudformation deploy --template-file DIR/template.yaml --stack-name thrifty "
        "--capabilities CAPABILITY_IAM --parameter-overrides ...   (docs/deploy/fargate.md)"
    ),
)
