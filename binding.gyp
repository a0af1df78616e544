{
  # For node-gyp and whatever stands on it. gyp compiles nothing here: the one action hands over to CMakeLists.txt
  # through cmake-js. Its output never exists, so the action always runs and CMake decides what is out of date.
  "targets": [
    {
      "target_name": "longseq",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake_js",
          "message": "longseq: building with cmake-js (CMakeLists.txt)",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/always"],
          "action": [
            "node", "<!(node -p \"require.resolve('cmake-js/bin/cmake-js')\")",
            "compile", "--config", "<(CONFIGURATION_NAME)", "--out", "build/cmake"
          ]
        }
      ]
    }
  ]
}
