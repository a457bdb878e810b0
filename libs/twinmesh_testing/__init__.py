"""What tests of every package share: the real servers, fakes for every port, a clock that tests move."""
