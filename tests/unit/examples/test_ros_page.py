"""The node of docs/ros2.md, compiled against stand-ins that have the signatures of ROS 2's headers
as far as it uses them. It shows that the node fits our header, not that it runs in ROS."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
RCLCPP = """\
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
namespace rclcpp {
struct QoS { explicit QoS(std::size_t); QoS& keep_last(std::size_t); };
struct SensorDataQoS : QoS { SensorDataQoS(); };
struct Logger {};
struct Clock { using SharedPtr = std::shared_ptr<Clock>; };
template <class M> struct Publisher {
  using SharedPtr = std::shared_ptr<Publisher>;
  void publish(M const&);
};
template <class M> struct Subscription { using SharedPtr = std::shared_ptr<Subscription>; };
struct Node {
  using SharedPtr = std::shared_ptr<Node>;
  explicit Node(std::string const&);
  template <class T> auto declare_parameter(std::string const&, T const&) -> T;
  template <class M> std::shared_ptr<Publisher<M>> create_publisher(std::string const&, QoS const&);
  template <class M, class F>
  std::shared_ptr<Subscription<M>> create_subscription(std::string const&, QoS const&, F&& take) {
    std::function<void(std::shared_ptr<M const>)> const fits = std::forward<F>(take);
    return nullptr;
  }
  Logger get_logger() const;
  Clock::SharedPtr get_clock();
};
void init(int, char const* const*);
void spin(Node::SharedPtr);
bool shutdown();
Logger get_logger(std::string const&);
}
#define RCLCPP_FATAL(logger, ...) ((void)(logger), std::printf(__VA_ARGS__))
#define RCLCPP_ERROR_THROTTLE(logger, clock, ms, ...) \\
  ((void)(logger), (void)(clock), (void)(ms), std::printf(__VA_ARGS__))
"""
IMAGE = """\
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>
namespace sensor_msgs::msg {
struct Image {
  using ConstSharedPtr = std::shared_ptr<Image const>;
  std::uint32_t height, width, step;
  std::string encoding;
  std::uint8_t is_bigendian;
  std::vector<std::uint8_t> data;
};
}
"""
ARRAY = """\
#pragma once
#include <cstdint>
#include <string>
#include <vector>
namespace std_msgs::msg {
struct MultiArrayDimension { std::string label; std::uint32_t size, stride; };
struct MultiArrayLayout { std::vector<MultiArrayDimension> dim; std::uint32_t data_offset; };
struct Float32MultiArray { MultiArrayLayout layout; std::vector<float> data; };
}
"""


def block(kind: str) -> str:
    (found,) = re.findall(rf"(?s)```{kind}\n(.*?)```", PAGE)
    return str(found)


def test_the_node_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    for name, text in (
        ("rclcpp/rclcpp.hpp", RCLCPP),
        ("sensor_msgs/msg/image.hpp", IMAGE),
        ("std_msgs/msg/float32_multi_array.hpp", ARRAY),
        ("node.cpp", block("cpp")),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{ROOT / 'examples' / 'cpp'}", "-isystem", str(tmp_path), "node.cpp"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if "nlohmann/json.hpp" in done.stderr:
        pytest.skip("nlohmann's JSON is not installed: apt install nlohmann-json3-dev")
    assert done.returncode == 0, done.stderr


def test_the_package_says_what_its_build_asks_for() -> None:
    depends = {e.text for e in ET.fromstring(block("xml")).iter("depend")}
    asked = set(re.findall(r"find_package\((\w+) REQUIRED", block("cmake")))
    assert asked - {"ament_cmake", "tcompile_runtime"} == depends - {"nlohmann-json-dev"}
