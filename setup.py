"""What pyproject.toml cannot say: the themes lie at the top of the checkout and inside the package once installed."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["exltui", "exltui.*"]), "exltui.themes"],
    package_dir={"exltui.themes": "themes"},
    package_data={
        "exltui": ["py.typed"],
        "exltui.app": ["**/*.tcss"],
        "exltui.csrc": ["**/*.cpp", "**/*.h", "**/*.cu", "**/*.cuh"],
        "exltui.presets": ["*.toml"],
        "exltui.themes": ["*.toml"],
    },
)
