# SEMR's images for amd64 and arm64. To build and push all of them:
#
#   REGISTRY=ghcr.io/semr TAG=0.1.0 docker buildx bake --push
#
# For this machine alone: docker buildx bake --load --set '*.platform=linux/amd64'

variable "REGISTRY" { default = "ghcr.io/semr" }

# The charts ask for their appVersion: a tag v0.1.0 becomes 0.1.0, a branch's slashes become dashes.
variable "TAG" { default = "0.1.0" }

variable "VERSION" { default = "0.1.0" }

variable "REVISION" { default = "" }

# Where the code is, for the label by which registries link to it.
variable "SOURCE" { default = "" }

# PyTorch's CPU build; cu130 and the like for GPUs, empty for that of the index.
variable "TORCH_BACKEND" { default = "cpu" }

group "default" {
  targets = ["semr-ray", "semr-flyte-task", "semr-evolution", "semr-model-deployment"]
}

function "tag" {
  params = [name]
  result = ["${REGISTRY}/${name}:${regex_replace(trimprefix(TAG, "v"), "[^a-zA-Z0-9_.-]", "-")}"]
}

target "_all" {
  context   = "."
  platforms = ["linux/amd64", "linux/arm64"]
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
  labels = {
    "org.opencontainers.image.source" = SOURCE
  }
}

target "semr-ray" {
  inherits   = ["_all"]
  dockerfile = "docker_build/ray_image/Dockerfile"
  tags       = tag("semr-ray")
  args = {
    FLAVORS       = "tensorflow,torch"
    TORCH_BACKEND = TORCH_BACKEND
  }
}

target "semr-flyte-task" {
  inherits   = ["_all"]
  dockerfile = "docker_build/flyte_task/Dockerfile"
  tags       = tag("semr-flyte-task")
}

target "semr-evolution" {
  inherits   = ["_all"]
  dockerfile = "docker_build/evolution/Dockerfile"
  tags       = tag("semr-evolution")
}

target "semr-model-deployment" {
  inherits   = ["_all"]
  dockerfile = "docker_build/model_deployment/Dockerfile"
  tags       = tag("semr-model-deployment")
}
